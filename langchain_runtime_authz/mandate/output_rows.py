"""Split an output into records, choose some, and rate the trust in each field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from typing import Any, Final, NamedTuple

from langchain_runtime_authz.facts.call_arguments import MAX_ITEMS, SCALAR_TYPES, is_empty, scalars
from langchain_runtime_authz.facts.normal_forms import key
from langchain_runtime_authz.facts.output_reading import SHORT
from langchain_runtime_authz.mandate import read_outputs as reads
from langchain_runtime_authz.mandate.date_matching import compare
from langchain_runtime_authz.mandate.model import Each, Eq, Own, Pick
from langchain_runtime_authz.mandate.value_matching import IDENTIFIERS, is_own_identifier, meets_condition
from langchain_runtime_authz.tool_profile import ToolProfile, field_trust

_WORTH: Final = {"system": 2, "internal": 1, "external": 0}


class Row(NamedTuple):
    """One record of an output, like an item of a list."""

    record: Any
    base: str  # path of the list that holds the record
    path: str  # path of the argument's field within the record
    output: reads.Output
    mine: bool  # True if the subject made the record

    def worth(self, path: str, conditions: Sequence[object] = ()) -> int:
        """Return a field's trust (0 to 2). `conditions`: by which it chooses the record."""
        mine = self.mine and not self.listed(path)
        return chosen_by(self.output.profile, join_paths(self.base, path), conditions, mine=mine)

    def listed(self, path: str) -> bool:
        """Return True for a field that is inside a list of the record."""
        names = path.split(".")
        above = (".".join(names[:i]) for i in range(len(names)) if path)
        return any(isinstance(v, list) for name in above for v in reads.values_at(self.record, name))


def rows_of(output: reads.Output, path: str, own: Sequence[Any]) -> Iterator[Row]:
    """Yield the items of the first list on `path`; without a list, the output."""
    value, base, inner = output.value, [], path.split(".") if path else []
    while isinstance(value, dict) and inner and isinstance(value.get(inner[0]), dict | list):
        value = value[inner[0]]
        base.append(inner.pop(0))
    if isinstance(value, list):
        for record in value:
            at = ".".join(base)
            yield Row(record, at, ".".join(inner), output, made_by(own, record, output.profile, at))
    elif output.value is not None:
        yield Row(output.value, "", path, output, made_by(own, output.value, output.profile))


def made_by(own: Sequence[Any], record: Any, profile: ToolProfile, base: str = "") -> bool:
    """Return True if the subject (identifiers `own`) is the only author of the record."""
    if profile.author is None or not own or not profile.author.startswith(f"{base}." if base else ""):
        return False
    authors = reads.values_at(record, path_below(base, profile.author))
    authors = authors[0] if len(authors) == 1 and isinstance(authors[0], list) else authors
    return len(authors) == 1 and is_own_identifier(authors[0], own)


def chosen_by(profile: ToolProfile, path: str, conditions: Sequence[object], *, mine: bool = False) -> int:
    """Return the trust (0 to 2) of a field that chooses a record by `conditions`.

    A field that a counterparty chooses, like the account that paid, has trust 0. But nobody can pay from a foreign
    account. So if the system wrote the field, and the conditions name one account, the field has trust 1.
    """
    field, found = field_trust(profile, path), trust_level(profile, path, mine=mine)
    if found or field.origin != "system" or field.prose or not field.counterparty or not conditions:
        return found
    return 1 if all(type(c) is Own or (type(c) is Eq and _identifies(c.value)) for c in conditions) else 0


def _identifies(value: object) -> bool:
    return any(form.startswith(IDENTIFIERS) for form in reads.scalar_forms(value, said=True))


def trust_level(profile: ToolProfile, path: str, *, mine: bool = False) -> int:
    """Return a field's trust: 2 system, 1 internal, 0 outsider, counterparty or prose.

    `mine`: the subject made the record. Then the fields next to its author field have at least trust 1, because the
    subject chose them.
    """
    field, beside = field_trust(profile, path), (profile.author or "").rpartition(".")[0]
    mine = mine and path.rpartition(".")[0] == beside
    return max(mine, 0 if field.prose or field.counterparty else _WORTH[field.origin])


def path_below(base: str, name: str) -> str:
    """Return a dotted path without `base`, like a field's path within its record."""
    return name.removeprefix(f"{base}.") if base else name


def join_paths(base: str, path: str) -> str:
    """Return two dotted paths as one; either may be empty."""
    return f"{base}.{path}" if base and path else base or path


def values_of(row: Row, path: str) -> list[Any]:
    """Return the scalars at a path within the record; `[None]` if there are too many."""
    nodes = reads.values_at(row.record, path)
    if len(nodes) == 1 and type(nodes[0]) in SCALAR_TYPES and nodes[0] != "":
        return nodes
    return [None] if (found := scalars(nodes, MAX_ITEMS, mappings=False)) is None else found


def prose(value: object) -> bool:
    """Return True for a long text, which may quote others even in a user's record."""
    return isinstance(value, str) and (len(value) > SHORT or len(value.splitlines()) > 1)


def choose(
    argument: Pick | Each, outputs: Sequence[reads.Output], own: Sequence[Any], zone: tzinfo | None, *, sure: bool
) -> list[Row] | str:
    """Return the records that the conditions choose, or "ambiguous".

    A `Pick` chooses one record; several are ambiguous. `sure`: so is a record that perhaps meets the conditions.
    """
    chosen: list[Row] = []
    for row in (row for output in outputs for row in rows_of(output, argument.path, own)):
        meeting = [
            meets_condition(condition, values_of(row, path_below(row.base, name)), own, zone)
            for name, conditions in argument.where.items()
            for condition in conditions
        ]
        if all(meeting):
            chosen.append(row)
        elif sure and False not in meeting:
            return "ambiguous"
    if isinstance(argument, Each):
        return chosen
    for name, sign in ((argument.max, 1), (argument.min, -1)):
        chosen = _extreme(chosen, name, sign) if name is not None else chosen
    one = {record_key(row): row for row in chosen}
    return list(one.values()) if len(one) == 1 else "ambiguous"


def _extreme(rows: Sequence[Row], name: str, sign: int) -> list[Row]:
    """Return rows with the greatest (`sign` 1) or least field `name`; [] if unclear."""
    best: list[Row] = []
    for row in rows:
        values = values_of(row, path_below(row.base, name))
        if len(values) != 1 or compare(values[0], values[0]) is None:
            return []
        order = compare(values[0], values_of(best[0], path_below(best[0].base, name))[0]) if best else sign
        if order is None:
            return []
        if order * sign > 0:
            best = [row]
        elif order == 0:
            best.append(row)
    return best


def record_key(row: Row) -> str:
    """Return a digest of a record's trusted fields, which outsiders cannot edit."""
    return key(json.dumps(_core(row.record, row.output.profile, row.base, row.mine), sort_keys=True))


def _core(value: Any, profile: ToolProfile, path: str, mine: bool) -> Any:
    # Leave out untrusted values, and members whose values are all untrusted.
    if isinstance(value, dict):
        held = {name: _core(inner, profile, join_paths(path, name), mine) for name, inner in value.items()}
        return {name: inner for name, inner in held.items() if not is_empty(inner)}
    if isinstance(value, list):
        several = (_core(inner, profile, path, mine and not isinstance(inner, dict)) for inner in value)
        return [inner for inner in several if not is_empty(inner)]
    return value if trust_level(profile, path, mine=mine) else None
