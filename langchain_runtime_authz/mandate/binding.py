from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.mandate.outputs import Outputs
from langchain_runtime_authz.profile import ToolProfile


MANDATE = "mandate:"
class Deviation(NamedTuple):
    argument: str
    code: str
    expected: str
class Spend(NamedTuple):
    counter: str
    maximum: int
    by: int = 1
class Standing(NamedTuple):
    standing: str
    step: str | None
    deviations: tuple[Deviation, ...]
    spends: tuple[Spend, ...]
class CallFacts(NamedTuple):
    tool: str
    profile: ToolProfile
    args: Mapping[str, Any]
    given: frozenset[str]
    own: frozenset[str]
    words: str
class Binding:
    counters: tuple[str, ...] = ()
    def standing(self, counts: Mapping[str, int]) -> Standing:
        return Standing("none", None, (), ())
def bind(mandate: Mandate | None, call: CallFacts, profiles: Mapping[str, ToolProfile], outputs: Outputs, taken: Collection[str] = ()) -> Binding:
    return Binding()
