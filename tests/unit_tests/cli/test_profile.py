"""`runtime-authz profile`: what is proposed, what is checked, and that neither makes a tool less risky."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import date
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import BaseTool, StructuredTool, tool
from pydantic import BaseModel, Field, WithJsonSchema, create_model

from langchain_runtime_authz import RuntimeAuthz, ToolProfile
from langchain_runtime_authz.cli._profile_proposal import Proposal, propose
from langchain_runtime_authz.cli.init import example_args
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.langgraph.tool_facts import Profiles
from langchain_runtime_authz.tool_profile import EFFECTS, SINKS, UNPROFILED, load_profiles, raise_by_hints
from tests.cli import cli

MODULE = """
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

@tool
def send_mail(to: list[str], body: str, send_at: str = "") -> str:
    "Send a mail."
    return "sent"

@tool
def get_page(url: str, retries: int = 3) -> str:
    "Get a page."
    return "found"

@tool("no")
def odd(x: int) -> str:
    "Something."
    return "x"

print("a module may print")
b = StateGraph(MessagesState)
b.add_node("tools", ToolNode([send_mail, get_page, odd]))
b.add_edge(START, "tools")
graph = b.compile()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    (tmp_path / "mail_agent.py").write_text(MODULE)
    yield partial(cli, "profile")
    sys.path[:] = path
    sys.modules.pop("mail_agent", None)


def made(name: str = "act", description: str = "Something.", metadata: dict[str, Any] | None = None, **args: Any) -> BaseTool:
    schema = create_model("Args", **{n: a if isinstance(a, tuple) else (a, ...) for n, a in args.items()})
    return StructuredTool(name=name, description=description, args_schema=schema, func=lambda **_: "", metadata=metadata)


def parsed(proposal: Proposal) -> ToolProfile:
    return load_profiles_text("tools:\n" + proposal.yaml())[proposal.name]


def load_profiles_text(text: str) -> dict[str, ToolProfile]:
    return load_profiles(yaml.safe_load(text)["tools"])


# --- suggest


def test_a_proposal_is_a_draft_with_doubts_and_a_profile_once_it_is_reviewed(run: Callable[..., Any], tmp_path: Path) -> None:
    """The whole way: suggest, check (drafts), review, check (clean)."""
    result = run("suggest", "mail_agent:graph", "--write", "p.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    text = (tmp_path / "p.yaml").read_text()
    found = load_profiles(tmp_path / "p.yaml")
    assert set(found) == {"send_mail", "get_page", "no"}
    mail = found["send_mail"]
    assert mail.draft
    assert (mail.effect, mail.sink, mail.data_class, mail.trust) == ("send", "external", "confidential", "external")
    assert (mail.critical, mail.when, mail.text) == ({"to": "principal"}, ("send_at",), ("body",))
    assert found["get_page"].effect == "write" and "    # effect: fetch  # DOUBT: or this, as the address" in text
    assert 'nothing is known of "retries"' in text

    drafts = run("check", "p.yaml", "mail_agent:graph")
    assert drafts.exit_code == 1 and drafts.stderr.count("it is a draft") == 3
    assert all(line.startswith("error: profile_invalid: ") for line in drafts.stderr.splitlines() if "print" not in line)

    unread = "\n".join(line for line in text.splitlines() if "draft: true" not in line)
    (tmp_path / "p.yaml").write_text(unread)
    accepted = run("check", "p.yaml", "mail_agent:graph")
    assert accepted.exit_code == 1 and accepted.stderr.count("marks DOUBT were left") == 3

    (tmp_path / "p.yaml").write_text("\n".join(line.partition("# ")[0] for line in unread.splitlines()))
    clean = run("check", "p.yaml", "mail_agent:graph")
    assert (clean.exit_code, clean.stdout) == (0, "profiles: 3, tools: 3, tests: 0, findings: 0\n")


def test_a_search_is_proposed_as_one() -> None:
    """It reaches outside, and its free words decide nothing; where it looks does."""
    for name in ("search", "web_search", "find_pages"):
        found = parsed(propose(made(name, query=str, domain=str)))
        assert (found.effect, found.sink, found.critical, found.text) == ("fetch", "external", {"domain": "url"}, ("query",))


def test_a_graph_without_tools_is_told(run: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing is written, and the command fails."""
    (tmp_path / "mail_agent.py").write_text(
        "from langgraph.graph import START, MessagesState, StateGraph\n"
        "graph = StateGraph(MessagesState).add_node('a', lambda s: s).add_edge(START, 'a').compile()\n"
    )
    result = run("suggest", "mail_agent:graph", "--write", "p.yaml")
    assert result.exit_code == 2 and "has no tool" in result.stderr
    assert not (tmp_path / "p.yaml").exists()


def test_what_a_tool_makes_is_there_for_the_first_time() -> None:
    """Its name is no object that could be looked up; what it is put into is one."""
    made_here = parsed(propose(made("create_file", filename=str, folder=str)))
    assert made_here.critical == {"filename": "name", "folder": "object"}
    assert parsed(propose(made("edit_file", filename=str))).critical == {"filename": "object"}
    assert parsed(propose(made("add_issue_comment", issue_number=int))).critical == {"issue_number": "object"}


def test_nothing_is_written_over_a_review(run: Callable[..., Any], tmp_path: Path) -> None:
    """A file that exists stays what it is."""
    (tmp_path / "p.yaml").write_text("mine")
    result = run("suggest", "mail_agent:graph", "--write", "p.yaml")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("error: config: p.yaml: ")
    assert (tmp_path / "p.yaml").read_text() == "mine"


def test_what_has_a_profile_is_not_proposed(run: Callable[..., Any], tmp_path: Path) -> None:
    """And a file of nothing is a valid one."""
    (tmp_path / "have.yaml").write_text("tools: {send_mail: {}, get_page: {}}")
    only = run("suggest", "mail_agent:graph", "--profiles", "have.yaml")
    assert set(load_profiles_text(only.stdout)) == {"no"}
    (tmp_path / "have.yaml").write_text('tools: {send_mail: {}, get_page: {}, "no": {}}')
    assert load_profiles_text(run("suggest", "mail_agent:graph", "--profiles", "have.yaml").stdout) == {}


def test_a_reviewed_tool_claims_its_words_too(run: Callable[..., Any], tmp_path: Path) -> None:
    """Words that may mean a tool which has its profile already are not proposed for another one."""
    module = (tmp_path / "mail_agent.py").read_text()
    (tmp_path / "mail_agent.py").write_text(module.replace("get_page", "send_page"))
    (tmp_path / "have.yaml").write_text('tools: {send_mail: {}, "no": {}}')
    text = run("suggest", "mail_agent:graph", "--profiles", "have.yaml").stdout
    assert '# intent: ["send page"]' in text


class Attachment(BaseModel):
    file_id: str
    inline: bool = False


# What pydantic's own type says in a schema, without the package that it checks addresses with.
Address = Annotated[str, WithJsonSchema({"type": "string", "format": "email"})]


def test_arguments_by_name_type_and_format() -> None:
    """Recipients, accounts, addresses, amounts, paths, dates and texts; through lists and records, too."""
    seen = propose(
        made(
            recipient=str, iban=str, webhook_url=str, amount=float, file_path=str, channel=str, contact=Address,
            day=date, subject=str, city=str, password=str, attachments=list[Attachment], to_all=bool, limit=int,
            link=(str | None, None), mode=Literal["a", "b"], origin=str, checkin=str,
        ),
    )  # fmt: skip
    assert seen.facts["critical"] == {
        "recipient": "principal", "iban": "principal", "webhook_url": "url", "amount": "amount",
        "file_path": "object", "channel": "channel", "contact": "principal", "city": "place",
        "password": "value", "attachments.file_id": "object", "link": "url",
        "limit": "amount", "mode": "value", "origin": "place",
    }  # fmt: skip
    assert seen.facts["when"] == ["day", "checkin"] and seen.facts["text"] == ["subject"]
    assert seen.unknown == ("to_all", "limit") and parsed(seen).critical == seen.facts["critical"]


class Status(str, Enum):
    OPEN = "open"
    ON_HOLD = "on_hold"


def test_an_enum_is_a_value_and_no_text() -> None:
    """By its type alone. A search gets no critical argument for it. Free texts and numbers are read by their names, as before."""
    listed = propose(made("set_ticket", title=Literal["Mr", "Mrs"], content=Status, due=(Status | None, None), comment=str, level=Literal[1, 2]))
    assert listed.facts["critical"] == {"title": "value", "content": "value", "due": "value", "level": "amount"}
    assert listed.facts["text"] == ["comment"] and listed.unknown == ("level",)
    assert propose(made("write_note", text=Status | str)).facts["text"] == ["text"]
    search = propose(made("web_search", query=str, mode=Literal["fast", "deep"], notes=list[Literal["a", "b"]])).facts
    assert search["text"] == ["query"] and "critical" not in search
    assert example_args(made("set_ticket", status=Status, note=str)) == {"status": "open", "note": "example"}


def test_hints_raise_and_never_lower() -> None:
    """What says that it is harmless is a doubt; what says that it harms is believed."""
    reads = propose(made("list_things", metadata={"readOnlyHint": True}))
    assert reads.facts["effect"] == "write"
    assert [(d.fact, d.value) for d in reads.doubts] == [("effect", "read"), ("sink", "none")]
    liar = propose(made("get_all", "Deletes everything.", metadata={"readOnlyHint": True}))
    assert (liar.facts["effect"], [d for d in liar.doubts if d.fact == "effect"]) == ("delete", [])
    assert propose(made("touch", metadata={"destructiveHint": True})).facts["effect"] == "delete"
    assert propose(made("run_python", code=str)).facts["effect"] == "admin"


def guess(called: str, tools: tuple[BaseTool, ...] = (), **args: Any) -> dict[str, Any]:
    """Return what a reviewer gets who takes the milder guess wherever one is offered."""
    schema = create_model("Args", **{n: a if isinstance(a, tuple) else (a, ...) for n, a in args.items()})
    proposal = propose(StructuredTool(name=called, description="Something.", args_schema=schema, func=lambda **_: ""), tools)
    return proposal.facts | {d.fact: d.value for d in proposal.doubts}


EFFECT = {
    "get_invoice": "read", "kubectl_describe": "read", "find_id_by_email": "read", "look_up_fare": "read", "get_and_delete": "delete",
    "check_out": "write", "find_or_create": "write", "log_visit": "write", "acme_post_note": "send", "add_comment": "send", "reserve_seat": "pay", "create_order": "pay",
    "clear_queue": "delete", "uninstall_chart": "admin",
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECT)
def test_the_verb_of_a_name_says_the_effect(name: str) -> None:
    """Also behind the name of a server, and if a noun of a reading tool sounds like an act."""
    assert guess(name)["effect"] == EFFECT[name]


def test_what_runs_an_argument_is_admin() -> None:
    """A command, or a query of a database; a text that is only stored is none."""
    for name, argument in (("acme_generic", "command"), ("sql_db_query", "query"), ("call_service", "name"), ("query_db", "sql")):
        assert guess(name, **{argument: str})["effect"] == "admin", name
    assert guess("save_script", script=str)["effect"] == "write"


def test_ids_dates_and_descriptions_say_the_kind() -> None:
    """The id of a person is a person, the end of a period is a date, and what nothing is known of decides."""
    link = (str, Field(description="The URL of the chart."))
    found = guess("move_stay", to_date=str, user_id=int, email_id=str, email_address=str, ip_address=str, thread_id=str, chart=link, size=int, force=bool)
    assert found["when"] == ["to_date"] and found["critical"] == {
        "user_id": "principal", "email_id": "object", "email_address": "principal", "ip_address": "url", "thread_id": "object",
        "chart": "url", "size": "amount",
    }  # fmt: skip
    assert guess("create_payout", amount=int, destination=str)["critical"]["destination"] == "principal"


def test_words_of_intent_name_no_other_tool_of_the_graph() -> None:
    """A shared verb needs its nouns; if another tool has them too, no words are proposed."""
    alone, flight, order, item = made("cancel_flight"), made("book_flight"), made("cancel_order"), made("cancel_order_item")
    assert guess("cancel_flight")["intent"] == ["cancel"]
    assert guess("book_flight", (alone, flight))["intent"] == ["book", "reserve"]
    assert guess("cancel_flight", (alone, order))["intent"] == ["cancel flight"]
    assert "intent" not in guess("cancel_order", (order, item))
    assert guess("acme_turn_on_light", (made("acme_turn_off_light"),))["intent"] == ["turn on", "switch on"]
    assert guess("process_refund")["intent"] == ["process refund", "refund"]
    assert guess("change_rate")["intent"] == ["change", "update", "modify", "edit"]
    assert "intent" not in guess("get_flight") and "intent" not in guess("kubectl_generic")


names = st.text(min_size=1, max_size=30)
hints = st.fixed_dictionaries({}, optional={h: st.booleans() for h in ("readOnlyHint", "destructiveHint", "openWorldHint")})


@given(names, st.text(max_size=60), hints, st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True), st.sampled_from([str, int, float, bool, list[str]]), max_size=4))
def test_no_proposal_lowers_a_risk(name: str, description: str, metadata: dict[str, Any], args: dict[str, Any]) -> None:
    """Whatever a tool is called: its YAML loads, is a draft, and every fact is as risky as no profile or riskier.

    Only the name of a search makes it a `fetch`, whose arguments go outside.
    """
    schema = create_model("Args", **{n: (a, Field(alias=None)) for n, a in args.items()}) if args else create_model("Args")
    one = StructuredTool(name=name, description=description or "x", args_schema=schema, func=lambda **_: "", metadata=metadata)
    proposal = propose(one)
    loaded = parsed(proposal)
    least = raise_by_hints(UNPROFILED, metadata, name)
    assert loaded.draft
    looks = (loaded.effect, least.effect) == ("fetch", "write")
    assert looks or EFFECTS.index(loaded.effect) >= EFFECTS.index(least.effect)
    assert SINKS.index(loaded.sink) >= SINKS.index(least.sink) and loaded.trust == "external"
    assert loaded.data_class in ("internal", "confidential")
    assert loaded.intent == loaded.counterparty == loaded.reaches == loaded.audience == ()
    assert not loaded.idempotent


# --- drafts


def test_a_draft_leaves_its_tool_unprofiled() -> None:
    """In a graph and in a session: a draft is neither milder nor worse than no profile."""
    @tool
    def act(x: str) -> str:
        """Act."""
        return x

    for effect in ("read", "delete"):
        held = Profiles(load_profiles({"act": {"effect": effect, "sink": "none", "draft": True}})).of(act)
        assert (held.declared, held.profile, held.why) == (False, UNPROFILED, "its profile is a draft")

    def outcome(**profiles: Any) -> str:
        with RuntimeAuthz(profiles=profiles).session(subject="alice", task="Do it") as session:
            return session.decide("act", {"x": "1"}).outcome

    assert outcome() == outcome(act={"effect": "read", "sink": "none", "draft": True}) == "approval_required"
    assert outcome(act={"effect": "read", "sink": "none"}) == "permit"


def test_a_draft_takes_nothing_from_a_tool_of_the_framework() -> None:
    """A hand-over needs no profile, and a draft for it changes nothing; a strict verdict does."""
    over = pytest.importorskip("langgraph_swarm").create_handoff_tool(agent_name="other")
    assert Profiles({}).of(over) == Profiles(load_profiles({over.name: {"draft": True}})).of(over)
    assert not Profiles(load_profiles({over.name: {"draft": True, "verdict": "ask"}})).of(over).declared


def test_a_chain_into_a_draft_is_a_chain_into_the_unknown() -> None:
    """`reaches` does not believe a draft either."""
    found = load_profiles({"a": {"effect": "read", "reaches": ["b"]}, "b": {"effect": "read", "sink": "none", "draft": True}})
    assert found["a"].chain() == [{"tool": "b", "effect": "write", "sink": "external", "data_class": "internal"}]


def test_a_draft_in_code_is_one_too() -> None:
    """A `ToolProfile` in the tool's metadata."""
    one = made(metadata={"runtime_authz": ToolProfile(effect="read", draft=True)})
    assert not Profiles({}).of(one).declared


# --- check


FINDINGS = {
    "missing": ("tools: {send_mail: {effect: send}, get_page: {effect: fetch}}", "no: no profile"),
    "argument": ('tools: {send_mail: {effect: send, critical: {whom: principal}}, get_page: {}, "no": {}}', "`critical` names `whom`"),
    "milder": ('tools: {send_mail: {effect: read}, get_page: {}, "no": {}}', "annotations say send; correct it; or, if you reviewed what the tool does, pin `digest: sha256:"),
    "changed": ('tools: {send_mail: {effect: send, digest: "sha256:0"}, get_page: {}, "no": {}}', "changed after its review"),
    "unread": ('tools:\n  send_mail: {effect: send}  # DOUBT: its name\n  get_page: {effect: fetch}\n  "no": ask', "1 marks DOUBT"),
    "foreign": ('tools: {send_mail: {origin: other, effect: send}, get_page: {effect: fetch}, "no": ask}', "so it keeps asking"),
    "test": ('tools: {send_mail: ask, get_page: reads, "no": ask}\ntests: [{tool: send_mail, expect: permit}]', "send_mail {}: the answer is ask, not permit; correct the profile, or `expect`"),
    "mandate": ('tools: {send_mail: ask, get_page: reads, "no": ask}\nmandates: {a: {steps: 1}}', "mandates: a"),
    "draft": ('tools: {send_mail: {effect: send, draft: true}, get_page: {}, "no": {}}', "it is a draft"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_is_one_line_and_exit_code_1(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """With the stable code."""
    text, expected = FINDINGS[name]
    (tmp_path / "p.yaml").write_text(text)
    result = run("check", "p.yaml", "mail_agent:graph")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: profile_invalid: ") and expected in line


def test_a_profile_that_a_ready_set_has_is_named(run: Callable[..., Any], tmp_path: Path) -> None:
    """The file lacks it, and `init` would copy it there."""
    pytest.importorskip("langchain")
    (tmp_path / "todo_agent.py").write_text(
        "from langchain.agents import create_agent\nfrom langchain.agents.middleware import TodoListMiddleware\n"
        "from langchain_runtime_authz.testing import ScriptedChatModel\n"
        "graph = create_agent(ScriptedChatModel(script=[]), middleware=[TodoListMiddleware()])\n"
    )
    (tmp_path / "p.yaml").write_text("tools: {a: ask}")
    assert "write_todos: no profile here, but in the ready set `deepagents`; see `runtime-authz init`" in run("check", "p.yaml", "todo_agent:graph").stderr


UNUSABLE = {
    "no-file": None, "no-yaml": "tools: [", "no-tools": "a: 1", "field": "tools: {a: {colour: red}}",
    "value": "tools: {a: {effect: nice}}", "both": "tools: {a: {critical: {x: value}, text: [x]}}",
    "reaches": "tools: {a: {reaches: [b]}}", "name": "tools: {no: {}}",
    "bomb": "a: [&a0 [x, x]" + "".join(f", &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)) + "]\n? *a9\n: 1",
    "twice": "tools: {a: deny, b: ask, a: computes}", "mandates": "tools: {a: ask}\nmandates: 5",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_can_not_be_used(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """Exit code 2, one line."""
    if (text := UNUSABLE[name]) is not None:
        (tmp_path / "p.yaml").write_text(text)
    result = run("check", "p.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: profile_invalid: ") and result.stderr.count("\n") == 1


# --- ready profiles


def test_orders_of_two_tools_that_are_alike_are_a_note(run: Callable[..., Any], tmp_path: Path) -> None:
    tools = {
        "cancel_visit": {"critical": {"visit": "object"}, "intent": ["(cancel|drop) {visit} [now]"]},
        "cancel_order": {"critical": {"order": "object"}, "intent": ["cancel"]},
        "void": {"critical": {"bill": "amount"}, "intent": ["cancel {bill}"]},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"tools": tools}))
    result = run("check", "p.yaml")
    assert (result.exit_code, result.stderr.count("note: ")) == (0, 1)
    assert "cancel_order, cancel_visit: `cancel …` orders each" in result.stderr


def test_a_verb_that_orders_nothing_is_a_note(run: Callable[..., Any], tmp_path: Path) -> None:
    """The tool's name does not say what it acts on, so the verb alone suggests no order."""
    booking = {"effect": "write", "critical": {"booking": "object"}}
    tools = {
        "cancel": {**booking, "intent": ["cancel"]},
        "stop": {**booking, "intent": ["stop {booking}"]},
        "void_booking": {**booking, "intent": ["void"]},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"tools": tools}))
    result = run("check", "p.yaml")
    assert (result.exit_code, result.stderr.count("note: ")) == (0, 1)
    assert "cancel: the verb `cancel` alone orders nothing here; write a whole order, like `cancel {booking}`" in result.stderr
    assert len(json.loads(run("check", "p.yaml", "--json").stdout)["mute"]) == 1


def test_a_name_that_no_ready_set_has_is_a_path() -> None:
    with pytest.raises(ConfigError, match=r"`langchains` is neither .* like `langchain`"):
        load_profiles("langchains")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profiles("langchain.yml")
