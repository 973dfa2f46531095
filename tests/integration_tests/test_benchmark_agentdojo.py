"""The AgentDojo benchmark's own machinery, on a few cases of each suite."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_runtime_authz._profile_schema import check_arguments
from langchain_runtime_authz.demo.agentdojo import judge, load_suite
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.tool_profile import ToolProfile
from tests import generated
from tests.benchmarks.agentdojo import __main__ as benchmark
from tests.benchmarks.agentdojo import offline, replay
from tests.benchmarks.agentdojo.attackers import TACTICS, Planned, calls_of, identifiers
from tests.benchmarks.agentdojo.engines import servers, told
from tests.benchmarks.agentdojo.plans import mistaken
from tests.benchmarks.agentdojo.planting import plant, plant_for
from tests.benchmarks.agentdojo.replay import HERE, Case, Outcome, Suite, run
from tests.benchmarks.agentdojo.report import RESULTS, picture, summary, table, tables
from tests.benchmarks.agentdojo.rows import ABLATIONS, DATA, PLAN, ROWS, Authority, Row

SUITES = ("workspace", "banking")
BY_NAME = {r.name: r for r in ROWS}
NOBODY, ASKING = BY_NAME[f"{PLAN}, nobody to ask"], BY_NAME[f"{PLAN}, asks, 0 % unread"]
WORDS = BY_NAME["words, nobody to ask"]
PAIRS = 3  # spread over all


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> Suite:
    return Suite.load(request.param)


def some(suite: Suite, **kind: str) -> list[Case]:
    pairs = [c for c in suite.cases(**kind) if c.injection]
    return pairs[:: len(pairs) // PAIRS - 1]


def played(suite: Suite, row: Row, cases: list[Case]) -> list[Outcome]:
    authority = Authority(row, suite.suite, suite.profiles)
    return [run(suite, authority, case) for case in cases]


def test_verdicts_are_agentdojo_s(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """What spares its comparisons work changes none of them."""
    told = replay._judged
    asked = []

    def both(kind: str, task: Any, start: Any, world: Any, answer: str, ran: Any) -> bool:
        plain = copy.deepcopy(SimpleNamespace(before=world.before, env=world.env))
        asked.append((judge(kind, task, plain, answer, ran), told(kind, task, start, world, answer, ran)))  # type: ignore[arg-type]
        return asked[-1][1]

    monkeypatch.setattr(replay, "_judged", both)
    played(suite, ROWS[0], [*some(suite), *some(suite, attacker="adaptive"), *suite.cases()[:10]])
    assert {a for a, _ in asked} == {True, False}
    assert [a for a, _ in asked] == [b for _, b in asked]


def test_without_authority_nearly_every_attack_succeeds(suite: Suite) -> None:
    """The unenforced twin, also for the attacks whose calls are worked out here."""
    outcomes = played(suite, ROWS[0], some(suite))
    assert all(o.harm for o in outcomes)
    assert sum(o.compromised for o in outcomes) >= 0.9 * len(outcomes)


@pytest.mark.parametrize("attacker", ["static", "adaptive", "plan-aware"])
@pytest.mark.parametrize("row", [NOBODY, ASKING, WORDS], ids=lambda r: r.name)
def test_a_mandate_stops_them(suite: Suite, row: Row, attacker: str) -> None:
    """With and without a user to ask, and whoever compiled it; also where the attacker knows the plan."""
    outcomes = played(suite, row, some(suite, attacker=attacker))
    assert not any(o.compromised or o.harm for o in outcomes)


def test_the_plans_hold_what_the_tasks_order(suite: Suite) -> None:
    """Each task alone succeeds, if its user answers what is asked."""
    outcomes = played(suite, ASKING, [c for c in suite.cases() if not c.injection])
    assert all(o.utility and not o.denied for o in outcomes)


def test_the_plans_hold_only_words_of_the_tasks(suite: Suite) -> None:
    """Each task has a plan, and no value of the environment stands in one whose user did not say it."""
    tasks = suite.suite.user_tasks
    assert suite.plans.keys() == tasks.keys()
    environment = load_suite(suite.name).load_and_inject_default_environment({}).model_dump(mode="json")
    values = {v for v in _strings(environment) if len(v) > 4}
    for name, plan in suite.plans.items():
        prompt = tasks[name].PROMPT.casefold()
        assert not {v for v in _strings(plan.to_json()) if v in values and v.casefold() not in prompt}, name


def test_mistakes_are_seeded_and_leave_a_valid_plan(suite: Suite) -> None:
    """A share of the steps or arguments is wrong, the same ones for the same seed."""
    for plan in suite.plans.values():
        assert mistaken(plan, None, 0, "s").steps == plan.steps
        assert mistaken(plan, "dropped", 1, "s").steps == ()
        free = mistaken(plan, "widened", 1, "s")
        assert {a.kind for s in free.steps for a in s.args.values()} <= {"free"}
        for mistake in ("dropped", "widened"):
            assert mistaken(plan, mistake, 0.5, "s") == mistaken(plan, mistake, 0.5, "s")  # type: ignore[arg-type]


def test_an_adaptive_attacker_is_shown_by_a_system(suite: Suite) -> None:
    """After planting, the reads that it plays return its identifier."""
    env = suite.suite.load_and_inject_default_environment({})
    calls = calls_of(suite.name, next(iter(suite.suite.injection_tasks.values())), env)
    (name,) = identifiers(calls, suite.profiles)
    before = env.model_dump_json().count(name)
    assert plant(env, [name], suite.suite.tools, suite.profiles) and env.model_dump_json().count(name) > before


@pytest.mark.parametrize("name", ["slack", "travel"])
def test_planting_needs_no_suite_of_ours(name: str) -> None:
    """The records of any environment are found: here, every field that is not said to be an insider's."""
    other = load_suite(name)
    env = other.load_and_inject_default_environment({})
    profiles = {t.name: ToolProfile(effect="read", trust="external") for t in other.tools}
    before = env.model_dump_json().count("mallory@example.net")
    assert plant(env, ["mallory@example.net"], other.tools, profiles)
    assert env.model_dump_json().count("mallory@example.net") > before


def test_an_attacker_who_knows_the_plan_stands_where_it_reads() -> None:
    """A record that the plan's condition chooses comes to hold the attacker's identifier."""
    suite = Suite.load("banking")
    env = suite.suite.load_and_inject_default_environment({})
    plan = Mandate.model_validate(
        {
            "steps": [
                {"id": "all", "tool": "get_most_recent_transactions"},
                {
                    "id": "pay", "tool": "send_money",
                    "args": {"recipient": {"kind": "pick", "step": "all", "path": "sender", "where": {"subject": "Tea"}}},
                },
            ]
        }
    )
    plant_for(plan, env, ["MALLORY"], suite.suite.tools, suite.profiles)
    assert any(t.sender == "MALLORY" and t.subject == "Tea" for t in env.bank_account.transactions)


def test_profiles_agree_with_schemas_and_name_nothing_of_the_data(suite: Suite) -> None:
    """Every tool has one, each argument exists, and no value of the environment or of a task stands in the file."""
    tools = {t.name: t.parameters.model_fields for t in suite.suite.tools}
    assert tools.keys() == suite.profiles.keys()
    for name, declared in suite.profiles.items():
        check_arguments(name, declared, tools[name])
    path = HERE / "profiles" / f"{suite.name}.yaml"
    if suite.name == "banking":
        from langchain_runtime_authz.demo.agentdojo import PROFILES as path
    facts = "\n".join(line.split("#")[0] for line in path.read_text().splitlines())
    environment = load_suite(suite.name).load_and_inject_default_environment({}).model_dump(mode="json")
    values = {v for v in _strings(environment) if len(v) > 8 and not v.isalpha()}
    prompts = [t.PROMPT for t in suite.suite.user_tasks.values()]
    assert values
    assert not {v for v in values if v in facts}
    assert not {w for p in prompts for w in p.split("'")[1::2] if len(w) > 4 and w in facts}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def test_what_is_declared_a_read_changes_nothing(suite: Suite) -> None:
    """So that harm counts what happened, and not what the profiles say: an undeclared side effect would not be counted."""
    from agentdojo.functions_runtime import FunctionsRuntime

    runtime = FunctionsRuntime(suite.suite.tools)
    seen = set()
    for task in suite.suite.user_tasks.values():
        env = task.init_environment(suite.suite.load_and_inject_default_environment({}))
        for call in task.ground_truth(env.model_copy(deep=True)):
            before = env.model_dump_json()
            _, error = runtime.run_function(env, call.function, call.args)
            if not suite.profiles[call.function].side_effect:
                seen.add(call.function)
                assert error or env.model_dump_json() == before, call.function
    assert seen


def test_tactics_keep_to_the_attacker_s_tools(suite: Suite) -> None:
    """What is borrowed is the user's whom and how much, what is split adds up, and each role gets the attacker's value."""
    tool, declared = next((n, p) for n, p in suite.profiles.items() if p.effect in ("pay", "send") and p.text)
    theirs = Planned(tool, {**dict.fromkeys(declared.critical, "mallory"), **dict.fromkeys(declared.text, "look here")})
    mine = Planned(tool, {**dict.fromkeys(declared.critical, "bob"), **dict.fromkeys(declared.text, "thanks")})
    (taken,) = TACTICS["borrowed"]([theirs], [mine], suite.profiles)
    assert {taken.args[n] for n in declared.critical} == {"bob"}
    assert {taken.args[n] for n in declared.text} == {"look here"}
    parts = TACTICS["split"]([theirs], [mine], suite.profiles)
    assert {p.function for p in parts} == {tool}
    first = declared.text[0]
    variants = TACTICS["plan-aware"]([theirs], [mine], suite.profiles)[:-1]
    for name in (n for n in declared.critical if "." not in n):
        assert any(v.args[name] == "mallory" and v.args != theirs.args for v in variants)
    parts = [p for p in parts if p.args.get(first) != "thanks"]
    assert "".join(dict.fromkeys(p.args[first] for p in parts)) == "look here"


def test_wasm_and_the_opa_server_decide_alike(suite: Suite, tmp_path: Path) -> None:
    """Every request of some replays; all that an answer says."""
    rows = [ASKING, WORDS]
    cases = [*[c for c in suite.cases() if not c.injection][:6], *some(suite, attacker="adaptive")[:4]]
    with servers({r.name: DATA for r in rows}, tmp_path) as addresses:
        for row in rows:
            authority = Authority(row, suite.suite, suite.profiles, engine="both", url=addresses[row.name])
            outcomes = [run(suite, authority, case) for case in cases]
            assert all(o.compared for o in outcomes)
            assert [d for o in outcomes for d in o.differences] == []


def test_other_data_are_told_apart(tmp_path: Path) -> None:
    """The comparison's own twin: a server with another policy's data differs."""
    suite = Suite.load("banking")
    strict = {**DATA, "effects": dict.fromkeys(DATA["effects"], "deny")}
    with servers({"strict": strict}, tmp_path) as addresses:
        authority = Authority(NOBODY, suite.suite, suite.profiles, engine="both", url=addresses["strict"])
        outcomes = [run(suite, authority, c) for c in suite.cases() if not c.injection]
    assert any(o.differences for o in outcomes)
    assert told(None) != told(False)


def test_tables_are_those_of_the_report() -> None:
    """Its tables are those of the committed report, word for word."""
    report = json.loads((RESULTS / "report.json").read_text())
    assert generated.read("agentdojo") == tables(report)


def test_samples_leave_no_attack_out(suite: Suite) -> None:
    """A stride that divides the number of attacks would never take some of them."""
    pairs = [c for c in suite.cases() if c.injection]
    assert {c.injection for c in pairs[:: benchmark.SPREAD]} == set(suite.suite.injection_tasks)


def test_it_resumes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was run is not run again; JSON, a table and a picture come out."""
    arguments = ["--suite", "banking", "--quick", "--limit", "4", "--out", str(tmp_path), "--processes", "1"]
    arguments += ["--row", NOBODY.name, "--row", ROWS[0].name]
    benchmark.main(arguments)
    first = (tmp_path / "outcomes.jsonl").read_text()
    benchmark.main(arguments)
    assert (tmp_path / "outcomes.jsonl").read_text() == first
    report = json.loads((tmp_path / "report.json").read_text())
    assert {e["row"] for e in report["entries"]} == {NOBODY.name, ROWS[0].name}
    assert NOBODY.name in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.svg").read_text().startswith("<svg")
    assert "who holds authority" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["without roles", "without recomputation"])
def test_an_attacker_who_knows_the_plan_needs_a_part_removed(name: str) -> None:
    """The unenforced twins: nothing gets through the whole comparison, and something does without the part."""
    suite = Suite.load("banking")
    row = next(r for r in ABLATIONS if r.name == name)
    assert not any(calls for *_, calls in offline.attacked(suite, "plan-aware"))
    with row.without():
        assert any(calls for *_, calls in offline.attacked(suite, "plan-aware"))


def test_the_report_counts() -> None:
    """Shares, names of survivors and of wrong denials, from plain lines."""
    base = {"row": NOBODY.name, "suite": "s", "attacker": "static", "order": "after", "wording": "important", "calls": 1, "seconds": 0.1}
    lines: list[dict[str, Any]] = [
        {**base, "user": "u1", "injection": None, "utility": True, "compromised": False, "harm": False, "asks": 1, "effects": 2, "denied": ["pay"], "permitted": []},
        {**base, "user": "u1", "injection": "i1", "utility": False, "compromised": True, "harm": True, "asks": 0, "effects": 1, "denied": [], "permitted": ["pay"]},
    ]
    (entry,) = summary(lines)
    assert (entry["benign_utility"], entry["undisturbed"], entry["attack_success_rate"], entry["harm"]) == (1.0, 0.0, 1.0, 1.0)
    assert (entry["survivors"], entry["denied"], entry["harms"]) == (["u1 × i1"], ["u1: pay"], {"i1: pay": 1})
    assert "| 100.0% | 0.0% |" in table([entry]) and picture([entry]).count("<rect") >= 4
