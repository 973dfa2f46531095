"""Hold a call against what its task orders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from langchain_runtime_authz.ledger.base import Approval, CallRow, Scope
from langchain_runtime_authz.mandate.binding import Binding, CallFacts, Standing, bind
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.engine import Run
from langchain_runtime_authz.pep.provenance import forms_of
from langchain_runtime_authz.pep.thread_memory import TaskWords

__all__ = ["binding_of", "mandate_json", "mandate_of", "occasion", "standing_of"]

_log = logging.getLogger(__name__)


def mandate_of(run: Run, said: TaskWords) -> Mandate | None:
    """Return what the task orders: by the application, else by the planner, else by the user's words.

    They do not add up: a deed that two of them order would be done twice.
    """
    if run.mandate is not None:
        return run.mandate
    if run.engine.planner is not None:
        return run.planned
    if said.compiled == ():
        said.compiled = _compiled(run, said)
    return said.compiled  # type: ignore[return-value]


def _compiled(run: Run, said: TaskWords) -> Mandate | None:
    if not said.turn:
        return None
    # Only where a side effect is decided, and the language data is needed.
    from langchain_runtime_authz.mandate.words import compile_words

    tools = run.engine.tools
    try:
        found = compile_words(said.turn, tools.declared, tools.signatures).mandate
    except Exception as exc:  # noqa: BLE001  (what cannot be read orders nothing)
        _log.warning("the user's words were not read: %s", type(exc).__name__)
        return None
    # Another spelling of the profiles must not make the same order anew.
    return found.of("words", said.digest) if found is not None else None


def binding_of(run: Run, said: TaskWords, call: Call) -> tuple[Mandate | None, Binding | None]:
    """Return the mandate, and how the call compares with it; reads are not compared."""
    if call.error is not None or call.profile.effect == "read":
        return None, None
    mandate = mandate_of(run, said)
    own = run.subject.properties.get("identifiers")
    facts = CallFacts(
        call.tool,
        call.profile,
        call.args,
        call.given,
        forms_of(own) if own else frozenset(),
        "\n".join(said.turn),
    )
    memory = run.engine.memory
    return mandate, bind(mandate, facts, run.engine.tools.declared, memory.outputs(run.scope))


def standing_of(
    binding: Binding, counters: Mapping[str, int], row: CallRow | None, approval: Approval | None, ahead: dict[str, int]
) -> Standing:
    """Return how a call stands to the mandate, given what is spent.

    Args:
        binding: of the call.
        counters: what the ledger counts.
        row: what the ledger holds of the call. One that was let run unasked before has spent its step already.
        approval: what was asked and answered about it.
        ahead: what the calls before it in the message will spend; this one's is added.
    """
    again = int(row is not None and approval is None)
    counts = {c: max(counters.get(c, 0) - again, 0) + ahead.get(c, 0) for c in binding.counters}
    standing = binding.standing(counts)
    for spend in standing.spends:
        ahead[spend.counter] = ahead.get(spend.counter, 0) + spend.by
    return standing


def occasion(run: Run, mandate: Mandate | None) -> Scope | None:
    """Return where the steps of an application's mandate with a `key` are spent: once for all threads of the subject.

    Other mandates belong to their thread, and are spent there (`None`).
    """
    if mandate is None or mandate.source != "application" or not mandate.key:
        return None
    return Scope(run.scope.tenant, run.scope.issuer, "mandate:", run.subject.principal)


def mandate_json(mandate: Mandate | None, standing: Standing, *, backed: bool) -> dict[str, Any]:
    """Return `context.call.mandate` of a request (`authzen.MandateContext`)."""
    return {
        "standing": standing.standing,
        "backed": backed,
        "source": mandate.source if mandate is not None else None,
        "step": standing.step,
        "digest": mandate.digest if mandate is not None else None,
        "deviations": [{"argument": d.argument, "code": d.code} for d in standing.deviations],
    }
