"""Find the mandate of a run's task, compare calls with it, and count its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.local_time import local_day
from langchain_runtime_authz.ledger.base import Scope
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.mandate.argument_matching import CallFacts, is_default
from langchain_runtime_authz.mandate.call_matching import MandateMatch, Standing, match_call
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.mandate.plain_orders import Known, says
from langchain_runtime_authz.mandate.read_outputs import TaskKey
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.decision_log import run_event, tool_label
from langchain_runtime_authz.pep.run import Run
from langchain_runtime_authz.pep.thread_memory import TURNS_BEFORE, TaskWords, Turn, turns_before
from langchain_runtime_authz.telemetry.logs import get_logger

_log = get_logger(__name__)
APPLICATION_MANDATE: Final = "mandate:application"  # the ledger mark with the mandate and its epoch
Ahead = tuple[dict[str, int], dict[str, int]]  # counts of a message's earlier calls: of all, of those that may not run


class ApplicationMandate(NamedTuple):
    """The mandate from `RuntimeAuthz.run`. It applies in one epoch of each thread."""

    mandate: Mandate
    epochs: dict[Scope, int]  # thread → that epoch

    @classmethod
    def by(cls, mandate: Mandate | None) -> ApplicationMandate | None:
        """Return the mandate as the application's; None without a mandate."""
        return cls(mandate.of("application", mandate.key), {}) if mandate is not None else None

    def apply(self, run: Run) -> list[SetMark]:
        """Set the run's mandate. Return the changes that store it for later root entries."""
        first = next(iter(self.epochs), run.scope)
        if self.epochs.get(run.scope, run.epoch) != run.epoch:
            return []
        spent_at = first if first != run.scope else None
        if run.entry.mandate is not None and (run.entry.mandate, run.entry.spent_at) == (self.mandate, spent_at):
            return []
        run.entry.mandate, run.entry.spent_at = self.mandate, spent_at
        kept = {"epoch": run.epoch, "spent_at": spent_at, "mandate": self.mandate.to_json()}
        return [SetMark(APPLICATION_MANDATE, json.dumps(kept))]


def mandate_event(run: Run, mandate: Mandate) -> tuple[Any, ...]:
    """Return the `Write` effect that records a mandate in the audit log."""
    detail: dict[str, Any] = {"source": mandate.source, "digest": mandate.digest}
    detail["steps"] = [{"id": tool_label(s.id), "tool": tool_label(s.tool)} for s in mandate.steps]
    if run.pep.audit.content:
        detail["mandate"] = mandate.to_json()
    return run_event(run, "mandate", time.time(), detail=detail)


def recall_mandate(run: Run, mark: str | None) -> None:
    """Set the run's mandate from a ledger mark, if the mark is of this epoch."""
    run.entry.mandate = run.entry.spent_at = None
    kept = json.loads(mark) if mark else {}
    if kept.get("epoch") == run.epoch:
        run.entry.mandate = Mandate.model_validate(kept["mandate"])
        run.entry.spent_at = Scope(*kept["spent_at"]) if kept["spent_at"] else None


def mandate_of(run: Run, said: TaskWords) -> Mandate | None:
    """Return the mandate of the application, the planner or the user's words."""
    if run.entry.mandate is not None:
        return run.entry.mandate
    if run.pep.planner is not None:
        return run.entry.planned
    released = None if run.pep.tools.released is None else run.pep.tools.released()
    if said.released is not released:
        # If another policy revision reads other orders, the words order nothing: its steps have other counters.
        found, said.released = _compiled(run, said), released
        said.compiled = found if said.compiled in ((), found) else None
    return said.compiled  # type: ignore[return-value]


def _compiled(run: Run, said: TaskWords) -> Mandate | None:
    if not said.turn.texts:
        return None
    # Imported at first use, so that importing the package stays fast.
    from langchain_runtime_authz.mandate.word_follow_ups import compile_turn

    tools, turn, zone = run.pep.tools, said.turn, run.pep.zone
    try:
        earlier = (older.texts[0] for older in turns_before(said.log, turn, zone))
        found = compile_turn(turn.texts, earlier, tools.declared, tools.schemas, local_day(zone, turn.at)).mandate
    except Exception as exc:  # noqa: BLE001  (what cannot be read orders nothing)
        _log.warning("the user's words were not read: %s", type(exc).__name__)
        return None
    # The turn is the mandate's name, so that its steps stay used up after a profile changed.
    return found.of("words", said.turn.key) if found is not None else None


def find_match(run: Run, said: TaskWords, call: Call, counter: str = "") -> tuple[Mandate | None, MandateMatch | None]:
    """Return the mandate and the call's comparison with it; two Nones for a read.

    `counter`: counts equal calls.
    """
    if call.error is not None or not call.profile.needs_mandate:
        return None, None
    mandate = mandate_of(run, said)
    own = run.subject.properties.get("identifiers")
    facts = CallFacts(
        call.tool,
        call.profile,
        call.args,
        chosen_arguments(run, mandate, call),
        tuple(own) if isinstance(own, list) else (),
        "\n".join(said.turn.texts),
        task_key(run) if mandate is run.entry.mandate else _task_key_of_words(run, said.turn, mandate, call),
        run.grant.steps if run.grant is not None else None,
        (said.turn.at if mandate is not run.entry.mandate else 0) or run.entry.started_at,
        run.pep.zone,
        _counters_before(said, mandate, call, counter)
        if mandate is not None and mandate.source != "application"
        else (),
    )
    memory = run.pep.memory
    return mandate, match_call(mandate, facts, run.pep.tools.declared, memory.outputs(run.scope))


def _counters_before(said: TaskWords, mandate: Mandate, call: Call, counter: str) -> Sequence[str]:
    """Return the counters of equal calls for the user's messages before the turn.

    Empty if the turn orders the call anew ("again"), or if a second call changes nothing.
    """
    harmless = call.profile.idempotent and call.profile.effect != "pay"
    if not counter or harmless:
        return ()
    if any(says("again", text, Known()) for text in said.turn.texts):
        from langchain_runtime_authz.mandate.step_checks import ordered_anew

        steps = [step for step in mandate.steps if step.tool == call.tool]
        if ordered_anew(said.turn.texts, steps, call.profile):
            return ()
    kind, _, equal = counter.split(":", 2)
    return [f"{kind}:{n}:{equal}" for n in range(max(1, said.before + 1 - TURNS_BEFORE), said.before + 1)]


def chosen_arguments(run: Run, mandate: Mandate | None, call: Call) -> frozenset[str]:
    """Return the sent arguments, except defaults that no step of the mandate names."""
    given = more = call.given
    if mandate is None:
        return given
    for step in mandate.steps:
        if step.tool == call.tool:
            more = more.difference(step.args)
    if not more:
        return given
    schema: Any = run.pep.tools.schemas.get(call.tool, {})
    properties, required = schema.get("properties", {}), schema.get("required", ())
    # An argument that must be given, or that the schema does not name, has not got the default `None`.
    own = (n for n in more if n in properties and not (n in required and call.args.get(n) is None))
    return given - {n for n in own if is_default(properties[n], call.args.get(n))}


def task_key(run: Run) -> TaskKey:
    """Return the key of the task, under which outputs of reads are stored."""
    return run.epoch, run.entry.mandate.digest if run.entry.mandate is not None else "", None


def _task_key_of_words(run: Run, turn: Turn, mandate: Mandate | None, call: Call) -> TaskKey:
    """Return the key of the task, with the first epoch whose reads count for a call.

    Usually the reads since the user's order count, even if the newest text only says "yes, do it". For a write inside
    the application that the planner's mandate orders, older reads count too, unless their data changed.
    """
    inside = mandate is run.entry.planned and call.profile.inside
    return run.epoch, "", turn.fresh if inside else turn.since


def standing_of(
    matched: MandateMatch, counters: Mapping[str, int], ahead: Ahead, *, counted: bool, stopped: bool, denied: bool
) -> Standing:
    """Return how a call compares with the mandate. Add its counts to `ahead`.

    `counters`: the ledger's counts, which include this call if it was `counted`. `stopped`: the policy did not permit
    this call. Then calls of the message that wait for it deviate. `denied`: it denied this call, so the call leaves its
    step to later calls of the message.
    """
    (every, unsure), counts = ahead, {}
    for counter, by in matched.counters.items():
        before = (unsure if counter in matched.awaited else every).get(counter, 0)
        counts[counter] = max(counters.get(counter, 0) - by * counted, 0) + before
    standing = matched.standing(counts)
    for spend in standing.spends:
        for added in (every,) if standing.standing == "covered" and not stopped else ahead[denied:]:
            added[spend.counter] = added.get(spend.counter, 0) + spend.by
    return standing


def counting_scope(run: Run, mandate: Mandate | None) -> Scope | None:
    """Return the scope in which threads share a mandate's counts; None if not shared."""
    if mandate is None or mandate.source != "application":
        return None
    if mandate.key:
        return Scope(run.scope.tenant, run.scope.issuer, "mandate:", run.subject.principal)
    return run.entry.spent_at


def mandate_json(mandate: Mandate | None, standing: Standing, *, backed: bool) -> dict[str, Any]:
    """Return `call.mandate` of a request. `backed`: no critical argument is `outside`."""
    found = standing.deviations
    return {
        "standing": standing.standing,
        # A call that a person must confirm asks, even if its address is known.
        "backed": backed and not (found and any(d.code == "confirm" for d in found)),
        "source": mandate.source if mandate is not None else None,
        "step": standing.step,
        "digest": mandate.digest if mandate is not None else None,
        "deviations": [{"argument": d.argument, "code": d.code} for d in found] if found else [],
    }
