"""AuthZEN's certification scenario and interop vectors, played through `AuthzenPDP`.

`python -m tests.integration_tests.authzen_certification` prints the report: against a conforming server of these tests, and
against Cerbos if `LRA_CERBOS` names it. The scenario certifies PDPs; here it shows that the client sends what a PDP must
accept, and reads what a PDP must answer. The client does not search, so the rows of Search are not played.
"""

import json
import logging
import os
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jsonschema
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from langchain_runtime_authz.evaluation import Decision
from langchain_runtime_authz.pdp.authzen import AuthzenPDP
from langchain_runtime_authz.pdp.base import Evaluator

from .authzen_server import AuthzenServer, merged

DATA: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "authzen.json").read_text())
ROWS: list[dict[str, Any]] = DATA["certification"]
SCHEMAS = {name: jsonschema.Draft202012Validator(schema) for name, schema in DATA["schemas"].items()}
USERS = {
    f"CiRmZD{code}2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs": name
    for code, name in {
        "A": "rick@the-citadel.com", "E": "morty@the-citadel.com", "I": "summer@the-smiths.com", "M": "beth@the-smiths.com",
        "Q": "jerry@the-smiths.com",
    }.items()
}


def fixture(request: dict[str, Any]) -> dict[str, Any]:
    """Decide as the scenario's §2.4 demands. A request that does not fit the published schema is an error."""
    if not SCHEMAS["request"].is_valid(request):
        raise ValueError("not an evaluation")
    subject, action, resource = request["subject"], request["action"], request["resource"]
    of = {name: request[name].get("properties", {}) for name in ("subject", "action", "resource")}
    alice = subject["id"] == "alice"
    rules = {
        "read": resource["type"] == "record" and subject["id"] in ("alice", "bob"),
        "write": of["subject"].get("role") == "admin" or (alice and of["resource"].get("status") != "archived"),
        "delete": alice and of["action"].get("soft") is True,
    }
    return {"decision": rules.get(action["name"], False)}


CERBOS = """
apiVersion: api.cerbos.dev/v1
resourcePolicy:
  resource: record
  version: default
  rules:
    - {actions: [read], effect: EFFECT_ALLOW, roles: ["*"], condition: {match: {expr: 'P.id in ["alice", "bob"]'}}}
    - {actions: [write], effect: EFFECT_ALLOW, roles: ["*"], condition: {match: {any: {of: [{expr: P.attr.role == "admin"},
       {expr: 'P.id == "alice" && !(has(R.attr.status) && R.attr.status == "archived")'}]}}}}
"""
# Cerbos 0.55 gives its policies no properties of an action, and refuses a request with unknown members, or a batch with a bad item.
KNOWN = {"cerbos": {"2.2.6", "2.2.9", "3.4.1 (second evaluation missing resource)"}}


def requests_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the questions of a row, each in full, as the client asks them."""
    request = row["request"]
    items = request.get("evaluations") or [{}]
    return [merged(item, {k: v for k, v in request.items() if k != "evaluations"}) for item in items]


def play(pdp: AuthzenPDP, row: dict[str, Any]) -> list[Decision]:
    """Return the client's decisions on a row."""
    return Evaluator(pdp, deadline=10).evaluate([json.dumps(request).encode() for request in requests_of(row)])


def passes(row: dict[str, Any], decisions: list[Decision]) -> bool:
    """Return True if the decisions are those that the scenario demands; a refused request is a deny for the PDP's failure."""
    expected = row["expected"] if isinstance(row["expected"], list) else [row["expected"]]
    if expected == [400]:
        return [(d.permit, d.failure) for d in decisions] == [(False, "pdp")]
    return len(expected) == len(decisions) and all(
        d.permit is wanted if wanted is not None else d.failure is None for wanted, d in zip(expected, decisions, strict=True)
    )


def report(columns: dict[str, str]) -> Table:
    """Play each row against each of the servers: name → URL."""
    table = Table("row", "level", "expected", *columns, title="AuthZEN 1.0, certification scenario")
    with ExitStack() as stack:
        pdps = {name: stack.enter_context(closing(AuthzenPDP.discover(url, timeout=5))) for name, url in columns.items()}
        for row in ROWS:
            cells = []
            for name, pdp in pdps.items():
                good = passes(row, play(pdp, row))
                known = row["id"] in KNOWN.get(name, ())
                cells.append("pass" if good else "the PDP cannot" if known else "FAIL")
            table.add_row(row["id"], row["level"], escape(json.dumps(row["expected"])), *cells)
    table.add_row("6.2", "discovery", "metadata", *["pass"] * len(columns))
    table.add_row(f"4 ({DATA['search_rows']} rows)", "search", "", *["not used"] * len(columns))
    return table


def main() -> None:
    logging.disable()  # the refusals that rows demand
    from .cerbos import serving

    with ExitStack() as stack:
        columns = {"conforming": stack.enter_context(AuthzenServer(fixture)).url}
        if os.environ.get("LRA_CERBOS"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            columns["cerbos"] = stack.enter_context(serving(folder, CERBOS))
        Console(width=110).print(report(columns))


# The todo scenario's roles (authzen-interop.net), in Rego of our own.
TODO_POLICY = """package todo

roles := {
	"rick@the-citadel.com": {"admin", "evil_genius"},
	"morty@the-citadel.com": {"editor"},
	"summer@the-smiths.com": {"editor"},
	"beth@the-smiths.com": {"viewer"},
	"jerry@the-smiths.com": {"viewer"},
}

user := data.users[input.subject.id]

default allowed := false

allowed if {
	input.action.name in {"can_read_user", "can_read_todos"}
	count(roles[user]) > 0
}

allowed if {
	input.action.name == "can_create_todo"
	count(roles[user] & {"editor", "admin", "evil_genius"}) > 0
}

allowed if {
	input.action.name in {"can_update_todo", "can_delete_todo"}
	count(roles[user] & {"editor", "admin", "evil_genius"}) > 0
	input.resource.properties.ownerID == user
}

allowed if {
	input.action.name == "can_update_todo"
	"evil_genius" in roles[user]
}

allowed if {
	input.action.name == "can_delete_todo"
	"admin" in roles[user]
}

decision := {"decision": allowed}
"""


if __name__ == "__main__":
    main()
