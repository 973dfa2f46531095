"""`RuntimeAuthz`: wires the parts together. It keeps no state of its own and there is no global one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, overload, runtime_checkable

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel

from langchain_runtime_authz._validate import checked_callable, checked_text, wrong
from langchain_runtime_authz.audit.sinks import AuditSink, FileSink, MemorySink
from langchain_runtime_authz.authzen import Subject
from langchain_runtime_authz.errors import AuditError, Code, ConfigError, LedgerError
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.identity.base import Identity
from langchain_runtime_authz.identity.static import StaticIdentity
from langchain_runtime_authz.langgraph.callback_backstop import Ambient, install
from langchain_runtime_authz.langgraph.coverage.discovery import coverage_of
from langchain_runtime_authz.langgraph.coverage.report import CoverageReport
from langchain_runtime_authz.langgraph.planner import ModelPlanner
from langchain_runtime_authz.langgraph.protect import Protection, protect
from langchain_runtime_authz.langgraph.root_entry import Entrance
from langchain_runtime_authz.langgraph.run import RunHandle, SubjectLike
from langchain_runtime_authz.langgraph.tool_guard import guard_tool
from langchain_runtime_authz.langgraph.tool_profiles import Profiles
from langchain_runtime_authz.ledger.base import Anchor, Anchored, Approval, Ledger, Scope
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pep.approver import ListAsked, answer_beside, question_of
from langchain_runtime_authz.pep.corrections import correct, data_changed, reinstate, revoke
from langchain_runtime_authz.pep.credentials import key_scope
from langchain_runtime_authz.pep.engine import Engine, Flow, adrive, drive, new_id
from langchain_runtime_authz.pep.kill_switch import KillSwitch
from langchain_runtime_authz.pep.notify import LogNotifier, Notifier
from langchain_runtime_authz.pep.session import Session
from langchain_runtime_authz.profile import ToolProfile, load_profiles

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.approval_statement import Approvers, Question
    from langchain_runtime_authz.credential.issuer import Issuer
    from langchain_runtime_authz.credential.verifier import Verifier

__all__ = ["RuntimeAuthz"]

MAX_NAMED = 5  # tools named in the warning
G = TypeVar("G")

GraphLike = Pregel[Any, Any, Any, Any] | str | None


@runtime_checkable
class _Revised(Protocol):
    """A PDP whose policy brings profiles and grants."""

    @property
    def profiles(self) -> Mapping[str, ToolProfile]: ...

    @property
    def grants(self) -> Mapping[str, Grant]: ...


def _revised(pdp: PDP) -> list[_Revised]:
    """Those behind a PDP whose policy brings profiles and grants: an observer or a breaker must not hide them."""
    if isinstance(pdp, _Revised):
        return [pdp]
    return [found for behind in getattr(pdp, "behind", ()) for found in _revised(behind)]


class RuntimeAuthz:
    """Runtime authorization for LangGraph graphs.

    Without arguments: the shipped policy in the in-process Wasm engine, a ledger in memory, an
    ephemeral ES256 key, audit records in memory.

    Args:
        pdp: the policy decision point; the default is `WasmPDP()`, which takes changes of the shipped data.
        issuer: signs per-call tokens; the default has an ephemeral key.
        ledger: what is known of threads; the default is `MemoryLedger()`.
        identity: names agents; the default does not attest.
        profiles: tool name → `ToolProfile`, the path of a YAML file, or `langchain` or `deepagents` for those that
            come with the package; the default is what the `pdp` brings (`ReloadingPDP`).
        audit: a path for a hash-chained JSONL file, or a sink.
        subject_from: finds the subject of an implicit run in a root config. Whoever calls the graph can
            write `configurable` and metadata: believe only what a server has verified (`identity.subjects`).
        task_channels: state channels that hold what a human asked; in `messages` only user entries do.
        task_memory: namespaces of the graph's store whose edits from outside change the task, like
            `("memories", "{subject}")`.
        kill_switch: a file that stops everything while it exists; the default is what the environment
            variable `RUNTIME_AUTHZ_KILL_SWITCH` names.
        notify: channels of the obligation `notify`; `log` is always there (`pep.notify`).
        tenant: first part of every key in ledger, audit and token.
        planner: a chat model with structured output that says which tools a task needs. It is asked once per
            state of the task, before anything runs, and sees the human's words and the profiles, nothing else;
            if it fails, the task asks for no tool. Without one, the `intent` words of profiles tell.
        ambient: where a tool that nobody guarded is decided when it starts: inside protected runs
            (`run`), or everywhere in the process (`process`), where it is denied `no_run` outside
            every run. The latter is for good and for every graph of the process, protected or not.
        approvers: whose signed statements `approve` and `deny_approval` believe; without it, only people
            whom the application itself authenticated (`by`).

    Raises:
        ConfigError: anything of it is wrong; nothing was started.
        LedgerError: `ledger_rolled_back`: the audit file names a commit that the ledger does not hold.
    """

    verifier: Verifier
    """Verifies this instance's tokens against its ledger: for services in this process, and for tests."""

    def __init__(
        self,
        *,
        pdp: PDP | None = None,
        issuer: Issuer | None = None,
        ledger: Ledger | None = None,
        identity: Identity | None = None,
        profiles: Mapping[str, ToolProfile | Mapping[str, Any]] | str | Path | None = None,
        audit: AuditSink | str | Path | None = None,
        subject_from: Callable[[Mapping[str, Any]], SubjectLike | None] | None = None,
        task_channels: Sequence[str] = ("messages",),
        task_memory: Sequence[Sequence[str]] = (),
        kill_switch: str | Path | None = None,
        notify: Mapping[str, Notifier] | None = None,
        tenant: str = "default",
        planner: BaseChatModel | None = None,
        ambient: Ambient = "run",
        approvers: Approvers | None = None,
    ) -> None:
        declared = load_profiles(profiles)
        if ambient not in get_args(Ambient):
            raise wrong("ambient", f"one of {get_args(Ambient)}", ambient)
        checked_text("tenant", tenant)
        if subject_from is not None:
            checked_callable("subject_from", subject_from)
        # The engine and the signing library are loaded when an instance is made, not at import.
        from langchain_runtime_authz.credential.approval_statement import Approvers
        from langchain_runtime_authz.credential.issuer import Issuer, LocalIssuer
        from langchain_runtime_authz.credential.verifier import Verifier

        issuer = issuer if issuer is not None else LocalIssuer()
        if pdp is None:
            from langchain_runtime_authz.pdp.wasm import WasmPDP

            pdp = WasmPDP()
        self.pdp = pdp
        self.ledger: Ledger = ledger if ledger is not None else MemoryLedger()
        self.issuer: Issuer = issuer
        self.identity: Identity = identity if identity is not None else StaticIdentity()
        self.audit: AuditSink = _sink(audit)
        self.tenant = tenant
        self.approvers = approvers if approvers is not None else Approvers()
        notifiers = {"log": LogNotifier(), **(notify if isinstance(notify, Mapping) else {})}
        for name, given, kind, wanted in (
            ("ledger", self.ledger, Ledger, "a ledger, like `SqliteLedger(path)`"),
            ("issuer", issuer, Issuer, "an issuer, like `LocalIssuer()`"),
            ("identity", self.identity, Identity, "an identity, with `attested` and `agent_id`"),
            ("audit", self.audit, AuditSink, "a path or a sink, with `content` and `write`"),
            ("approvers", self.approvers, Approvers, "`Approvers`"),
            ("planner", planner, BaseChatModel | None, "a chat model"),
            ("notify", notify, Mapping | None, "a mapping of names to notifiers"),
            *((f"notify[{n!r}]", notifier, Notifier, "a notifier, with `send`") for n, notifier in notifiers.items()),
        ):
            if not isinstance(given, kind):
                raise wrong(name, wanted, given)
        _refuse_older(self.ledger, self.audit, tenant)
        revised = _revised(pdp)
        if len(revised) > 1 and profiles is None:
            msg = "several policies of the `pdp` bring profiles and grants; say which profiles count with `profiles=`"
            raise ConfigError(msg)
        self._revised = revised[0] if len(revised) == 1 else None
        brought = self._revised if profiles is None else None
        self.profiles = Profiles(declared if brought is None else lambda: brought.profiles)
        self._engine = Engine(
            ledger=self.ledger,
            evaluator=Evaluator(pdp),
            issuer=self.issuer,
            identity=self.identity,
            audit=self.audit,
            tenant=tenant,
            verifier=Verifier(issuer=issuer.issuer, jwks=issuer.jwks),
            notifiers=notifiers,
            kill_switch=KillSwitch(kill_switch) if kill_switch is not None else KillSwitch.from_environment(),
            profiles=self.profiles,
            planner=ModelPlanner(planner, self.profiles.declared) if planner is not None else None,
        )
        self.verifier = Verifier(issuer=issuer.issuer, jwks=issuer.jwks, status=self._status)
        self._ring = issuer.ring if isinstance(issuer, LocalIssuer) else None
        if self._ring is not None:
            self._ring.on_compromise(self._withdraw_key)
        self.entrance = Entrance(
            self._engine,
            subject_from=subject_from,
            task_channels=_names("task_channels", task_channels),
            task_memory=tuple(_names("task_memory", n) for n in task_memory),
        )
        self._protection = Protection(self.entrance, self.profiles)
        self._names: set[str] = set()
        install(ambient)

    def __repr__(self) -> str:
        return f"<RuntimeAuthz {self.tenant}: decided by {self.pdp.name}, {type(self.ledger).__name__}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeAuthz:
        return self  # what is copied with it stays governed by it: its ledger and its keys are no copies

    def protect(self, graph: G) -> G:
        """Protect a compiled graph (or builder), in place, with every graph it can reach.

        Returns the same object; doing it twice changes nothing. Warns once about tools without a
        profile.

        Raises:
            AlreadyProtected: another instance protects it or a part of it.
            ConfigError: it is not a graph.
        """
        protected: Any = protect(graph, self._protection)
        if not isinstance(protected, Pregel):
            return graph
        self._names.add(protected.get_name())
        report = coverage_of(protected, self._protection)
        unprofiled = report.unprofiled
        if unprofiled:
            warnings.warn(
                f"{len(unprofiled)} of {len(report.tools)} tools without a profile "
                f"({', '.join(unprofiled[:MAX_NAMED])}{', …' if len(unprofiled) > MAX_NAMED else ''}): each of their calls asks. "
                "`runtime-authz profile suggest module:graph` proposes profiles to review",
                stacklevel=2,
            )
        return graph

    def run(
        self,
        *,
        subject: SubjectLike,
        task: str | None = None,
        grant: Grant | str | None = None,
    ) -> RunHandle:
        """Open a run for `subject`: `with authz.run(subject="alice", task="…"): graph.invoke(…)`.

        Args:
            subject: a user's name, or `{type, id, properties}`. Agents, crons and webhooks are
                `agent` or `service`, never `user`.
            task: what the human asked, pinned before anything runs.
            grant: what the application gives for this task, or the name of a grant that the `pdp` brings
                (`ReloadingPDP`); `None` leaves it to policy.
        """
        return RunHandle(self._engine, Subject.of(subject), _text("task", task), self._granted(grant))

    @overload
    def guard(self, tools: BaseTool) -> BaseTool: ...

    @overload
    def guard(self, tools: Sequence[BaseTool]) -> list[BaseTool]: ...

    def guard(self, tools: BaseTool | Sequence[BaseTool]) -> BaseTool | list[BaseTool]:
        """Guarded copies of tools, for code that never meets a graph.

        Raises:
            AlreadyProtected: another instance guards one.
            ConfigError: it is no tool of LangChain's.
        """
        if isinstance(tools, BaseTool):
            return guard_tool(tools, self.profiles)
        if not isinstance(tools, Sequence) or not all(isinstance(t, BaseTool) for t in tools):
            raise wrong("tools", "a LangChain tool, or several", tools)
        return [guard_tool(t, self.profiles) for t in tools]

    def session(
        self,
        *,
        subject: SubjectLike,
        task: str | None = None,
        grant: Grant | str | None = None,
        agent: str = "session",
        thread: str | None = None,
    ) -> Session:
        """The same engine room without LangGraph, for other loops and recorded traces.

        Args:
            subject: as for `run`.
            task: as for `run`.
            grant: as for `run`.
            agent: the agent's name, in records and in the ledger's keys.
            thread: of an earlier session to go on with; a new one when absent.

        Raises:
            AuthzDenied: the subject may not start here.
        """
        return drive(self._engine, self._session(subject, task, grant, agent, thread))

    async def asession(
        self,
        *,
        subject: SubjectLike,
        task: str | None = None,
        grant: Grant | str | None = None,
        agent: str = "session",
        thread: str | None = None,
    ) -> Session:
        """Like `session`, without blocking the event loop: `async with await authz.asession(...)`."""
        return await adrive(self._engine, self._session(subject, task, grant, agent, thread))

    def _session(
        self, subject: SubjectLike, task: str | None, grant: Grant | str | None, agent: str, thread: str | None
    ) -> Flow[Session]:
        return Session.open(
            self._engine,
            self.profiles.declared,
            subject=Subject.of(subject),
            task=_text("task", task),
            grant=self._granted(grant),
            agent=agent,
            thread=thread,
        )

    def correct(
        self,
        thread_id: str,
        text: str,
        *,
        graph: GraphLike = None,
        by: SubjectLike | None = None,
    ) -> int:
        """Tell that a human changed the task of a thread. Returns the new epoch.

        Everything planned before is void from here on; the text reaches the graph with its next
        input.

        Args:
            thread_id: LangGraph's thread.
            text: what the human said.
            graph: the graph or its name, where this instance protects several graphs.
            by: who said it, if not the thread's own subject: it stops what was planned all the same,
                but its words give no authority.
        """
        return drive(self._engine, self._correct(thread_id, text, graph, by))

    async def acorrect(
        self,
        thread_id: str,
        text: str,
        *,
        graph: GraphLike = None,
        by: SubjectLike | None = None,
    ) -> int:
        """Like `correct`, without blocking the event loop."""
        return await adrive(self._engine, self._correct(thread_id, text, graph, by))

    def _correct(self, thread_id: str, text: str, graph: GraphLike, by: SubjectLike | None) -> Flow[int]:
        author = Subject.of(by) if by is not None else None
        _text("text", text)
        said = HumanText(content_digest(text), text, f"correction-{new_id()}")
        return correct(self._scope(thread_id, graph), said, author.principal if author else None)

    def approvals(self) -> list[Approval]:
        """The questions of this tenant that wait for an answer, on every thread; `id` names each.

        Raises:
            ConfigError: the ledger can not list them.
        """
        return [asked for _, asked in drive(self._engine, _asked(None))]

    async def aapprovals(self) -> list[Approval]:
        """Like `approvals`, without blocking the event loop."""
        return [asked for _, asked in await adrive(self._engine, _asked(None))]

    def question(self, approval_id: str) -> Question:
        """What a statement on `approval_id` must be about, for `credential.approval_statement.sign_statement`.

        Raises:
            AuthzError: `approval_void`: no such question is open (any more).
        """
        return question_of(drive(self._engine, _asked(approval_id)))

    def approve(self, approval_id: str, *, by: SubjectLike | None = None, statement: str | None = None) -> int:
        """A person approves the call that `approval_id` asks about, beside the graph.

        The graph stays paused; a plain resume or a re-invocation goes on without asking again.

        Args:
            approval_id: from the interrupt's payload, `approvals()` or the command line.
            by: who, authenticated by the application (`identity.oidc`); only a `user` approves.
            statement: who, by a signed statement (`credential.approval_statement.sign_statement`) instead.

        Returns:
            How many approvers the question still waits for.

        Raises:
            AuthzError: `approval_void` (answered, corrected, of another tenant, unknown),
                `approval_expired`, `approval_approver`, `approval_not_distinct`.
            CredentialError: the statement is not believed.
        """
        return drive(self._engine, self._answer(approval_id, "approve", by, statement))

    async def aapprove(self, approval_id: str, *, by: SubjectLike | None = None, statement: str | None = None) -> int:
        """Like `approve`, without blocking the event loop."""
        return await adrive(self._engine, self._answer(approval_id, "approve", by, statement))

    def deny_approval(
        self,
        approval_id: str,
        *,
        by: SubjectLike | None = None,
        statement: str | None = None,
        message: str = "",
    ) -> None:
        """A person rejects the call, as in `approve`; one is enough.

        `message` is told to the model. A reason changes the task, as a rejection at the graph does: the next epoch
        opens, and what else was asked or approved on the thread is void and asked again.
        """
        drive(self._engine, self._answer(approval_id, "deny", by, statement, message))

    async def adeny_approval(
        self,
        approval_id: str,
        *,
        by: SubjectLike | None = None,
        statement: str | None = None,
        message: str = "",
    ) -> None:
        """Like `deny_approval`, without blocking the event loop."""
        await adrive(self._engine, self._answer(approval_id, "deny", by, statement, message))

    def _answer(
        self,
        id: str,
        verdict: Literal["approve", "deny"],
        by: SubjectLike | None,
        statement: str | None,
        message: str = "",
    ) -> Flow[int]:
        person = Subject.of(by) if by is not None else None
        return answer_beside(self.approvers, id, verdict, by=person, statement=statement, message=message)

    def data_changed(self, resource: str) -> None:
        """Tell that a resource changed outside, by the name that the `resource` of profiles gives it.

        What threads of this tenant read of it before is old: the shipped policy refuses side effects
        whose critical arguments came from there, and what was planned on it is void.
        """
        drive(self._engine, data_changed(self.entrance.scope("", ""), resource))

    async def adata_changed(self, resource: str) -> None:
        """Like `data_changed`, without blocking the event loop."""
        await adrive(self._engine, data_changed(self.entrance.scope("", ""), resource))

    def revoke(self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = ()) -> None:
        """Revoke a thread, or an agent's subtree on it, until `reinstate`."""
        drive(self._engine, revoke(self._scope(thread_id, graph), tuple(agent)))

    async def arevoke(self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = ()) -> None:
        """Like `revoke`, without blocking the event loop."""
        await adrive(self._engine, revoke(self._scope(thread_id, graph), tuple(agent)))

    def reinstate(self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = ()) -> None:
        """Lift a revocation."""
        drive(self._engine, reinstate(self._scope(thread_id, graph), tuple(agent)))

    async def areinstate(self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = ()) -> None:
        """Like `reinstate`, without blocking the event loop."""
        await adrive(self._engine, reinstate(self._scope(thread_id, graph), tuple(agent)))

    def compromise_key(self, kid: str) -> None:
        """A signing key is in the wrong hands: withdraw it, and revoke every token that it signed.

        It leaves this instance's key ring, where it has one, and the ledger tells every service that
        asks it (`resource_server.status.LedgerStatus`, introspection). A service that asks nobody accepts
        such tokens while its copy of the key set lives (`credential.jwks.JwksClient`: 60 seconds).

        Raises:
            ConfigError: the ring has no such key.
        """
        if self._ring is not None:
            self._ring.compromise(kid)
        else:
            self._withdraw_key(kid)

    def _withdraw_key(self, kid: str) -> None:
        drive(self._engine, revoke(key_scope(self.tenant, self.issuer.issuer, kid), ()))

    def _granted(self, grant: Grant | str | None) -> Grant | None:
        if grant is None or isinstance(grant, Grant):
            return grant
        if not isinstance(grant, str):
            raise wrong("grant", "a `Grant`, or the name of one", grant)
        grants = self._revised.grants if self._revised is not None else {}
        if grant not in grants:
            msg = f"the policy has no grant `{grant}`; it has: {', '.join(sorted(grants)) or 'none'}"
            raise ConfigError(msg)
        return grants[grant]

    def _status(self, claims: Mapping[str, Any]) -> str:
        if self._engine.killed:
            return "revoked"
        return self.ledger.status(str(claims.get("tenant")), str(claims.get("jti")))

    def coverage(self, graph: Pregel[Any, Any, Any, Any]) -> CoverageReport:
        """What of `graph` is governed, by which layer, and what is not."""
        return coverage_of(graph, self._protection)

    def _scope(self, thread_id: str, graph: GraphLike) -> Scope:
        if graph is None:
            if len(self._names) != 1:
                msg = f"this instance protects {len(self._names)} graphs; say which with `graph=`"
                raise ConfigError(msg)
            (name,) = self._names
        else:
            name = graph if isinstance(graph, str) else graph.get_name()
        return self.entrance.scope(name, str(thread_id))


def _asked(id: str | None) -> Flow[Sequence[tuple[Scope, Approval]]]:
    found: Sequence[tuple[Scope, Approval]] = yield ListAsked(id)
    return found


def _names(parameter: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not names or not all(isinstance(n, str) and n for n in names):
        msg = f"`{parameter}` takes sequences of names, not {names!r}"
        raise ConfigError(msg)
    return tuple(names)


def _text(name: str, value: str | None) -> str | None:
    if value is not None and not isinstance(value, str):
        raise wrong(name, "text", value)
    return value


def _sink(audit: AuditSink | str | Path | None) -> AuditSink:
    if isinstance(audit, str | Path):
        return FileSink(audit)
    return audit if audit is not None else MemorySink()  # also one that says that it is empty


def _refuse_older(ledger: Ledger, audit: AuditSink, tenant: str) -> None:
    """A ledger that lacks what the audit chain saw of it was put back, or is another one: its revocations are gone."""
    newest = getattr(audit, "anchor", None)
    found = newest(tenant) if callable(newest) else None
    if found is None:
        return
    try:
        anchor = Anchor(str(found["ledger"]), int(found["position"]), str(found["nonce"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise AuditError(Code.CHAIN_BROKEN, "the newest record's `ledger` is no anchor") from exc
    if not (isinstance(ledger, Anchored) and ledger.holds(tenant, anchor)):
        raise LedgerError(Code.LEDGER_ROLLED_BACK, f"the audit file names commit {anchor.position}")
