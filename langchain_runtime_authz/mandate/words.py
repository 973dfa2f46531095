from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.profile import ToolProfile


class Compiled(NamedTuple):
    mandate: Mandate | None
def compile_words(texts: Sequence[str], profiles: Mapping[str, ToolProfile], signatures: Mapping[str, Mapping[str, Any]]) -> Compiled:
    return Compiled(None)
