"""Find where a call's arguments came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from langchain_runtime_authz._display import error_text
from langchain_runtime_authz.facts import provenance as tracing
from langchain_runtime_authz.facts.normal_forms import forms
from langchain_runtime_authz.facts.output_reading import Observation, observe_output
from langchain_runtime_authz.ledger.base import Snapshot
from langchain_runtime_authz.pep.call import Call
from langchain_runtime_authz.pep.run import Run
from langchain_runtime_authz.pep.thread_memory import TaskWords

SMALL: Final = 20_000  # characters; longer outputs are read in another thread


def arguments(run: Run, snapshot: Snapshot, said: TaskWords, call: Call) -> dict[str, tracing.Provenance]:
    """Return argument name → provenance of a call's critical and date arguments."""
    if not call.atoms.atoms:
        return {}
    own, texts = run.subject.properties.get("identifiers"), run.engine.memory.texts_read(run.scope)
    seen = texts.seen(snapshot.values, call.atoms.keys) if texts is not tracing.NO_TEXTS else snapshot.values
    named = frozenset(f for v in own for f in forms(v)) if own and isinstance(own, list) else frozenset()
    return tracing.trace(call.atoms, tracing.Evidence(said.words, named, seen, texts))


def wants_more(said: TaskWords, calls: Sequence[Call]) -> bool:
    """Return True if the user did not say a value, so outputs must be read in full."""
    items = [item for call in calls for atom in call.atoms.atoms for item in atom.items or ()]
    return not all(said.words.said(part) for item in items for part in item.parts)


def backed(traced: Mapping[str, tracing.Provenance]) -> bool:
    """Return True if no critical argument has the standing `outside`."""
    for found in traced.values():
        if found.standing == "outside" and found.kind != "when":
            return False
    return True


def observe(call: Call, output: object, failed: bool) -> Observation:
    """Read the beginning of a call's output or error."""
    output = error_text(output) if isinstance(output, BaseException) else output
    return observe_output(call.tool, call.profile, call.args, output, failed=failed)
