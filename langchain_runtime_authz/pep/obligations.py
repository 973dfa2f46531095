"""Check obligations by type, and find what they demand. An unknown type denies.

| type | properties | carried out |
|---|---|---|
| `redact` | `fields`: names; a dotted path counts as its last name | in the tool's result, before anything else sees it |
| `require_approval` | `expires_in` (s), `approvers`, `fallback`, `asks`; all optional | as a question to an approver, see `QuestionTerms` |
| `rate_limit` | `counter`, `window` (s), `max` | in the commit that claims the call, atomically |
| `budget` | `counter`, `max` | in the same commit: at most `max` permits on the thread, over all epochs |
| `notify` | `channel`; optional: `topic`, `body` | sent after the decision is recorded (`Notifier`); a failure denies |
| `revoke` | | revokes the agent's subtree, together with the deny |
| `rotate` | | advances the task's epoch together with the deny, so that earlier plans are void |
| `withhold_tools` | `tools`, `provider_tools`: names | a model is not shown these tools |

A deny may carry obligations too. `notify`, `revoke` and `rotate` are then carried out, and `rate_limit` and `budget`
count the attempt, up to their maximum. `redact` and `withhold_tools` have no effect with a deny.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

from pydantic import ValidationError

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import Decision, Obligation
from langchain_runtime_authz.ledger.call_changes import SpendBudget, SpendRate
from langchain_runtime_authz.ledger.changes import Change
from langchain_runtime_authz.pdp.policy_data import ApprovalTerms

MAX_NUMBER: Final = 2**53
POLICY_BUDGET: Final = "policy:"  # prefix of the policy's counters, to distinguish them from the grant's


class QuestionTerms(NamedTuple):
    """Terms of a question: who may answer and until when, and how many are asked."""

    expires_in: int = 0  # seconds; 0 means never
    needed: int = 1  # number of approvers who must approve
    distinct: bool = False  # an approver must be another person than the subject
    eligible: tuple[str, ...] = ()  # if not empty, only these may answer
    fallback: tuple[str, ...] = ()  # may also answer after `fallback_after` seconds without an answer
    fallback_after: int = 0
    per_run: int | None = None  # maximum number of questions of one run
    per_hour: int | None = None  # maximum number of questions of one subject in an hour

    @classmethod
    def of(cls, props: Mapping[str, Any]) -> QuestionTerms | None:
        """Return the terms in an obligation's properties, or `None` if they are malformed."""
        try:
            ApprovalTerms.model_validate(props)
        except ValidationError:
            return None
        approvers, fallback, asks = (props.get(name, {}) for name in ("approvers", "fallback", "asks"))
        return cls(
            props.get("expires_in", 0),
            approvers.get("min", 1),
            approvers.get("distinct_from_subject", False),
            tuple(approvers.get("who", ())) or ("",) * ("who" in approvers),  # an empty list admits nobody
            tuple(fallback.get("who", ())),
            fallback.get("after", 0),
            asks.get("run"),
            asks.get("hour"),
        )

    def strictest(self, other: QuestionTerms) -> QuestionTerms:
        """Return terms that satisfy both."""
        either = [(self.expires_in, other.expires_in), (self.per_run, other.per_run), (self.per_hour, other.per_hour)]
        least = [min((v for v in pair if v or v == 0), default=None) for pair in either[1:]]
        both = tuple(w for w in self.eligible if w in other.eligible)
        later = [w for w in dict.fromkeys(self.fallback + other.fallback) if self.admits(w) and other.admits(w)]
        # If the lists share nobody, nobody may answer: an empty list would admit anybody.
        eligible = (both or ("",)) if self.eligible and other.eligible else self.eligible or other.eligible
        return QuestionTerms(
            min((v for v in either[0] if v), default=0),
            max(self.needed, other.needed),
            self.distinct or other.distinct,
            eligible,
            tuple(later),
            max(self.fallback_after, other.fallback_after),
            *least,
        )

    def admits(self, who: str) -> bool:
        """Return True if the terms let this approver answer, now or later."""
        return not self.eligible or who in self.eligible or who in self.fallback


def change_demanded(obligation: Obligation) -> Change | Literal[True] | None:
    """Return an obligation's ledger change; True if it needs none; None if malformed.

    An obligation with an unknown property is malformed, because the property may be a misspelt limit.
    """
    props, shapes = {**_OPTIONAL.get(obligation.type, {}), **obligation.properties}, _SHAPES.get(obligation.type)
    if obligation.type in ("revoke", "rotate"):  # these types have no properties; unknown ones do not weaken them
        return True
    if obligation.type == "require_approval":
        return True if QuestionTerms.of(props) is not None else None
    if shapes is None or props.keys() != shapes.keys() or not all(shapes[name](v) for name, v in props.items()):
        return None
    if obligation.type == "rate_limit":
        return SpendRate(props["counter"], props["window"], props["max"])
    return SpendBudget(POLICY_BUDGET + props["counter"], props["max"]) if obligation.type == "budget" else True


def changes_owed(decision: Decision) -> list[Change]:
    """Return the ledger changes that a decision's obligations need."""
    return [change for o in decision.obligations if (change := change_demanded(o)) and change is not True]


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _natural(value: object) -> bool:
    # JSON readers disagree on numbers above 2^53, and ledgers cannot hold them.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER


# Action → the obligations that can be carried out for it.
_ANY: Final = frozenset(("require_approval", "rate_limit", "budget", "notify", "revoke"))
_ABLE: Final = {"tools/call": _ANY | {"redact", "rotate"}, "model/call": _ANY | {"withhold_tools"}}
# Type → its properties, each with the check of its value.
_SHAPES: Final[Mapping[str, Mapping[str, Callable[[object], bool]]]] = {
    "withhold_tools": {"tools": _names, "provider_tools": _names},
    "redact": {"fields": lambda v: _names(v) and v != []},
    "rate_limit": {"counter": _text, "window": lambda v: _natural(v) and v != 0, "max": _natural},
    "budget": {"counter": lambda v: _text(v) and v != "", "max": _natural},
    "notify": {"channel": lambda v: _text(v) and v != "", "topic": _text, "body": _text},
}
_OPTIONAL: Final[Mapping[str, Mapping[str, str]]] = {"notify": {"topic": "", "body": ""}}


def enforceable(decision: Decision, action: str) -> Decision:
    """Return the decision, or a deny if an obligation cannot be carried out.

    The action says which types can be carried out. The deny keeps those that can, and names the types of the others.
    """
    able = _ABLE.get(action, _ANY)
    known = [o for o in decision.obligations if o.type in able and change_demanded(o) is not None]
    unknown = [o.type for o in decision.obligations if o not in known]
    if not unknown:
        return decision
    return replace(
        decision,
        outcome="halt" if any(o.type == "revoke" for o in known) else "deny",
        reasons=(str(Code.UNKNOWN_OBLIGATION), *unknown, *decision.reasons),
        obligations=tuple(known),
        failure="enforcement",
    )


def is_keepable(permit: Decision, revision: str) -> bool:
    """Return True if a permit may be cached under this policy revision."""
    named = bool(revision) and permit.policy_revision == revision
    return named and not any(o.type in ("rate_limit", "budget", "notify") for o in permit.obligations)


def obliged_fields(obligations: Sequence[Obligation]) -> frozenset[str]:
    """Return the names of fields to redact. A dotted path adds its last name."""
    found = [name for o in obligations if o.type == "redact" for name in o.properties["fields"]]
    return frozenset(found).union(name.rpartition(".")[2] for name in found)


def withheld_tools(decision: Decision) -> tuple[frozenset[str], frozenset[str]]:
    """Return names of withheld tools: the agent's own tools, and provider tools."""
    given = [o.properties for o in decision.obligations if o.type == "withhold_tools"]
    return frozenset(n for p in given for n in p["tools"]), frozenset(n for p in given for n in p["provider_tools"])
