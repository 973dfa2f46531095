from collections.abc import Mapping
from typing import Any

from langchain_runtime_authz.profile import ToolProfile


class Outputs:
    def record(self, tool: str, profile: ToolProfile, args: Mapping[str, Any], output: object, *, complete: bool = True) -> None: ...
