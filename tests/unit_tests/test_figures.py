"""Each figure in the prose of README and docs is that of the code, or stands in a table that a command writes."""

import json
import re
from importlib.resources import files

import pytest

from langchain_runtime_authz import _display
from langchain_runtime_authz.audit import story
from langchain_runtime_authz.credential import authorization_details as details
from langchain_runtime_authz.credential import jwks, token
from langchain_runtime_authz.facts import history, output_reading
from langchain_runtime_authz.langgraph import call_messages
from langchain_runtime_authz.ledger import base
from langchain_runtime_authz.mandate import planner_mandate
from langchain_runtime_authz.pep import approval_questions, calls_in_doubt, health, mint_tokens, run
from langchain_runtime_authz.telemetry import logs, metrics
from tests.gates import test_statements as statements
from tests.unit_tests.test_docs import TEXTS

POLICY = json.loads(files("langchain_runtime_authz").joinpath("policies/data.json").read_text())["runtime_authz_data"]
WORDS = {"a": 1, "an": 1, "half a": 0.5, "half an": 0.5, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "ten": 10}
UNITS = {"s": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 30 * 86_400, "ms": 0.001, "kB": 1024, "KB": 1024, "MB": 1024**2}
COUNTED = "character|step|statement|commit|function|row"
FIGURE = re.compile(
    rf"(?<![\w-])(\d[\d.,]*|{'|'.join(sorted(WORDS, key=len, reverse=True))}) ({'|'.join(UNITS)}|%|{COUNTED})s?(?![\w-])"
)
ORDINAL = re.compile("an? second|(?:an?|one|two|three) (?:step|statement|commit|function|row)")  # count nothing that was measured

OF_CODE = {
    "CHANGELOG.md": {"live for at most 60 seconds": mint_tokens.TOKEN_TTL},
    "docs/approvals.md": {
        "it expires after a day": POLICY["approvals"]["*"]["expires_in"], "one subject in an hour": approval_questions.HOUR,
        "240 characters": _display.MAX_SHOWN,
    },
    "docs/audit.md": {"2,000 steps": story.MAX_STEPS},
    "docs/benchmarks.md": {"SQLite sees 5 statements": statements.SQLITE, "PostgreSQL sees 6 statements": statements.POSTGRES},
    "docs/codes.md": {
        "worked for longer than an hour": run.MAX_LIFETIME, "in the last 24 hours": base.LASTS,
        "more calls in a minute than the policy allows": history.MINUTE,
    },
    "docs/concepts.md": {
        "400,000 characters": output_reading.MAX_CHARS, "the first 4,000 characters": output_reading.HEAD_CHARS,
        "kept for up to an hour": run.MAX_LIFETIME,
    },
    "docs/credentials.md": {
        "at most 60 seconds. Once": mint_tokens.TOKEN_TTL, "at most 4 kB": details.MAX_DETAIL, "plus 5 seconds of leeway": token.LEEWAY,
        "with 5 seconds of leeway": token.LEEWAY, "at most 65 seconds after": token.MAX_TTL + token.LEEWAY,
    },
    "docs/delegation.md": {"after 60 seconds at the latest": mint_tokens.TOKEN_TTL},
    "docs/effects.md": {"JSON of at most 64 KB": call_messages.MAX_KEPT},
    "docs/identity.md": {"outlasts its lease (a minute)": run.LEASE_TTL},
    "docs/mandate/planner.md": {"more than 400 characters": planner_mandate.LONG},
    "docs/operations.md": {
        "its lease lapses (a minute)": run.LEASE_TTL, "less than a minute ago": run.LEASE_TTL, "for 24 hours": base.LASTS,
        "It has five seconds": calls_in_doubt.DEADLINE, "most five a minute for each code. A later": logs.WINDOW,
        "most five a minute for each code. While": logs.WINDOW, "within two seconds": health.DEADLINE, "waits one second": metrics.WAIT,
        "alone for half a minute": metrics.REST,
    },
    "docs/policies.md": {"for up to an hour of the same run": run.MAX_LIFETIME},
    "docs/runbooks.md": {
        "end after a minute": run.LEASE_TTL, "after at most a minute": jwks.CACHE_AGE, "and a minute has passed": jwks.CACHE_AGE,
    },
}  # fmt: skip
OF_PEOPLE = {  # a person's time, and the law's
    "README.md": ("first ten minutes",), "docs/audit.md": ("six months",),
    "docs/start.md": ("about ten minutes", "1 minute", "20 seconds a tool", "10 seconds", "2 minutes"),
}


def prose(page: str) -> str:
    return " ".join(re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL).split())


def figures(text: str) -> list[re.Match[str]]:
    return [found for found in FIGURE.finditer(text) if not ORDINAL.match(found[0])]


def amount(text: str) -> float:
    number, unit = next(iter(figures(text))).groups()
    return (WORDS[number] if number in WORDS else float(number.replace(",", ""))) * UNITS.get(unit, 1)


@pytest.mark.parametrize("page", sorted(page for page in TEXTS if "_generated" not in page))
def test_figures(page: str) -> None:
    """Those of code are right, and there are no others."""
    text, known = prose(page), OF_CODE.get(page, {})
    assert [(phrase, is_now) for phrase, is_now in known.items() if amount(phrase) != is_now or phrase not in text] == []
    for phrase in (*known, *OF_PEOPLE.get(page, ())):
        text = text.replace(phrase, "")
    assert [text[max(0, found.start() - 40) : found.end() + 20] for found in figures(text)] == []
