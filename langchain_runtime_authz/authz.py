"""`RuntimeAuthz` wires the parts together. It keeps no state of its own, and there is no global instance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel

from langchain_runtime_authz import _parts as parts
from langchain_runtime_authz._parts import TaskSources, both, like
from langchain_runtime_authz._validate import checked_callable, checked_text, optional_text, wrong
from langchain_runtime_authz.audit.sinks import AuditSink
from langchain_runtime_authz.authzen import Subject
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.facts.task import HumanText, content_digest
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.identity.static import Identity, StaticIdentity
from langchain_runtime_authz.langgraph.callback_backstop import install
from langchain_runtime_authz.langgraph.effect import effect
from langchain_runtime_authz.langgraph.protect import Protection, guarded_tools, protect
from langchain_runtime_authz.langgraph.root_entry import RootEntry
from langchain_runtime_authz.langgraph.run_context import RunHandle, SubjectLike
from langchain_runtime_authz.langgraph.tool_guard import guard_tool
from langchain_runtime_authz.langgraph.tool_profiles import Profiles, facts_of
from langchain_runtime_authz.ledger.base import Approval, Ledger, Scope
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.mandate.model import Mandate, load_mandate
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pep.approver import ListAsked, answer_beside, open_question
from langchain_runtime_authz.pep.corrections import correct, data_changed, reinstate, revoke
from langchain_runtime_authz.pep.credentials import key_scope
from langchain_runtime_authz.pep.engine import Engine, Flow, drive, new_id
from langchain_runtime_authz.pep.kill_switch import KillSwitch
from langchain_runtime_authz.pep.notify import LogNotifier, Notifier
from langchain_runtime_authz.pep.session import Session
from langchain_runtime_authz.profile import Source, load_profiles

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.approval_statement import Approvers, Question
    from langchain_runtime_authz.credential.issuer import Issuer
    from langchain_runtime_authz.credential.verifier import Verifier
    from langchain_runtime_authz.langgraph.coverage.report import CoverageReport

__all__ = ["RuntimeAuthz", "TaskSources"]

MAX_NAMED = 5  # tools named in the warning
G = TypeVar("G")
GraphLike = Pregel[Any, Any, Any, Any] | str | None


class RuntimeAuthz:
    """Runtime authorization for LangGraph graphs.

    Without arguments: the shipped policy in the in-process Wasm engine, a ledger in memory, an ephemeral ES256 key,
    audit records in memory. `RuntimeAuthz.production` refuses such parts.

    Args:
        pdp: the policy decision point; the default is `WasmPDP()`, which takes changes of the shipped data.
        issuer: signs per-call tokens; the default has an ephemeral key.
        ledger: keeps the state of threads; the default is `MemoryLedger()`.
        identity: names agents; the default does not attest.
        profiles: tool name → `ToolProfile` or a word like `ask`, the path of a YAML file, a set of the package like
            `deepagents`, or a list of these, in which the later profile of a tool counts. The default is the profiles of the `pdp` (`ReloadingPDP`).
        audit: a path for a hash-chained JSONL file, or a sink.
        subject_from: finds the subject of an implicit run in a root config. The caller can write `configurable`
            and metadata, so believe only what a server has verified (`identity.subjects`).
        task_sources: where the graph's state and store hold the task (`TaskSources`).
        kill_switch: a file that stops everything while it exists; the default is the path in the environment
            variable `RUNTIME_AUTHZ_KILL_SWITCH`.
        notify: channels of the obligation `notify`; `log` is always there (`pep.notify`).
        tenant: the first part of every key in ledger, audit and token.
        planner: a chat model with structured output that compiles the user's words into a mandate. It is asked once
            a turn, before anything runs, and sees only these words and the tools' profiles and signatures. If it
            fails, the task orders nothing. Without a planner, `mandate.words` reads plain orders.
        approvers: whose signed statements `approve` and `deny_approval` believe; the default believes only people
            whom the application has authenticated (`by`).

    Raises:
        ConfigError: an argument is wrong; nothing was started.
        LedgerError: `ledger_rolled_back`: the audit file names a commit that the ledger does not hold.
    """

    verifier: Verifier
    """Verifies this instance's tokens against its ledger, for services in this process and for tests."""

    def __init__(
        self,
        *,
        pdp: PDP | None = None,
        issuer: Issuer | None = None,
        ledger: Ledger | None = None,
        identity: Identity | None = None,
        profiles: Source | Sequence[Source] | None = None,
        audit: AuditSink | str | Path | None = None,
        subject_from: Callable[[Mapping[str, Any]], SubjectLike | None] | None = None,
        task_sources: TaskSources | None = None,
        kill_switch: str | Path | None = None,
        notify: Mapping[str, Notifier] | None = None,
        tenant: str = "default",
        planner: BaseChatModel | None = None,
        approvers: Approvers | None = None,
    ) -> None:
        declared = load_profiles(profiles)
        checked_text("tenant", tenant)
        if subject_from is not None:
            checked_callable("subject_from", subject_from)
        # Load the policy engine, the signing library and the language data with the first instance, not at import. A
        # call may be decided on an event loop, which must not wait for a file.
        from langchain_runtime_authz.credential.approval_statement import Approvers
        from langchain_runtime_authz.credential.issuer import Issuer, LocalIssuer
        from langchain_runtime_authz.credential.verifier import Verifier
        from langchain_runtime_authz.mandate.words import compile_words

        compile_words((), {})  # reads the language data
        issuer = issuer if issuer is not None else LocalIssuer()
        if pdp is None:
            from langchain_runtime_authz.pdp.wasm import WasmPDP

            pdp = WasmPDP()
        self.pdp, self.tenant = pdp, tenant
        self.ledger: Ledger = ledger if ledger is not None else MemoryLedger()
        self.issuer: Issuer = issuer
        self.identity: Identity = identity if identity is not None else StaticIdentity()
        self.audit: AuditSink = parts.audit_sink(audit)
        sources = task_sources if task_sources is not None else TaskSources()
        self.approvers = approvers if approvers is not None else Approvers()
        notifiers = {"log": LogNotifier(), **(notify if isinstance(notify, Mapping) else {})}
        for name, given, kind, wanted in (
            ("ledger", self.ledger, Ledger, "a ledger, like `SqliteLedger(path)`"),
            ("issuer", issuer, Issuer, "an issuer, like `LocalIssuer()`"),
            ("identity", self.identity, Identity, "an identity, with `attested` and `agent_id`"),
            ("audit", self.audit, AuditSink, "a path or a sink, with `content` and `write`"),
            ("approvers", self.approvers, Approvers, "`Approvers`"),
            ("planner", planner, BaseChatModel | None, "a chat model"),
            ("task_sources", sources, TaskSources, "`TaskSources`"),
            ("notify", notify, Mapping | None, "a mapping of names to notifiers"),
            *((f"notify[{n!r}]", notifier, Notifier, "a notifier, with `send`") for n, notifier in notifiers.items()),
        ):
            if not isinstance(given, kind):
                raise wrong(name, wanted, given)
        parts.refuse_older(self.ledger, self.audit, tenant)
        brings = parts.revised(pdp)
        if len(brings) > 1 and profiles is None:
            raise ConfigError(
                "several policies of the `pdp` bring profiles and grants; give the profiles that count as `profiles=`"
            )
        self._revised = brings[0] if len(brings) == 1 else None
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
            tools=self.profiles,
            planner=parts.compiler(planner, self.profiles),
        )
        self.verifier = Verifier(issuer=issuer.issuer, jwks=issuer.jwks, status=self._status)
        self._ring = issuer.ring if isinstance(issuer, LocalIssuer) else None
        if self._ring is not None:
            self._ring.on_compromise(self._withdraw_key)
        self.root_entry = RootEntry(
            self._engine, subject_from=subject_from, task_channels=sources.channels, task_memory=sources.memory
        )
        self._protection = Protection(self.root_entry, self.profiles)
        self._names: set[str] = set()
        install()

    @classmethod
    @like(__init__)
    def production(cls, **arguments: Any) -> RuntimeAuthz:
        """Make an instance for production: it refuses parts that end with the process, or that do not enforce.

        Args:
            **arguments: those of the constructor.

        Raises:
            ConfigError: such a part was given, or is the default. The error names each, and what to give instead.
        """
        if found := parts.ephemeral(**arguments):
            raise ConfigError("not for production: " + ". ".join(found))
        return cls(**arguments)

    @staticmethod
    def deny_outside_runs() -> None:
        """Deny every unguarded tool outside a run (`no_run`), in the whole process and for good.

        This includes the tools of graphs that nothing protects. Inside runs, unguarded tools are decided anyway.
        """
        install(everywhere=True)

    def __repr__(self) -> str:
        return f"<RuntimeAuthz {self.tenant}: decided by {self.pdp.name}, {type(self.ledger).__name__}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeAuthz:
        return self  # a copied graph stays governed by the same ledger and keys

    def protect(self, graph: G) -> G:
        """Protect a compiled graph (or builder) in place, with every graph that it can reach.

        Returns the same object; a second call changes nothing. Warns once about tools without a profile.

        Raises:
            AlreadyProtected: another instance protects it or a part of it.
            ConfigError: it is not a graph.
        """
        protected: Any = protect(graph, self._protection)
        if not isinstance(protected, Pregel):
            return graph
        self._names.add(protected.get_name())
        tools = {tool.name: facts_of(tool).profiled.declared for tool in guarded_tools(protected)}
        if found := [name for name, declared in tools.items() if not declared]:
            names = ", ".join((*found[:MAX_NAMED], "…") if len(found) > MAX_NAMED else found)
            warnings.warn(
                f"{len(found)} of {len(tools)} tools without a profile ({names}): each of their calls asks. "
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
        mandate: Mandate | Mapping[str, Any] | str | Path | None = None,
    ) -> RunHandle:
        """Open a run for `subject`: `with authz.run(subject="alice", task="…"): graph.invoke(…)`.

        Args:
            subject: a user's name, or `{type, id, properties}`. Agents, crons and webhooks are `agent` or
                `service`, never `user`.
            task: the user's words, pinned before anything runs.
            grant: the application's grant for this task, or the name of a grant of the `pdp` (`ReloadingPDP`);
                `None` leaves it to policy.
            mandate: what the task orders, if the application knows (`mandate.model`): a `Mandate`, its JSON form or the
                path of a YAML file. It replaces what a planner or the user's words say. It stays with the thread, also in later runs
                that do not name it, until a correction suspends it.

        Raises:
            ConfigError: an argument is wrong.
        """
        ordered = load_mandate(mandate) if mandate is not None else None
        return RunHandle(
            self._engine, Subject.of(subject), optional_text("task", task), parts.granted(grant, self._revised), ordered
        )

    @overload
    def guard(self, tools: BaseTool) -> BaseTool: ...

    @overload
    def guard(self, tools: Sequence[BaseTool]) -> list[BaseTool]: ...

    def guard(self, tools: BaseTool | Sequence[BaseTool]) -> BaseTool | list[BaseTool]:
        """Return guarded copies of tools, for code that never meets a graph.

        Raises:
            AlreadyProtected: another instance guards one.
            ConfigError: it is not a LangChain tool.
        """
        if isinstance(tools, BaseTool):
            return guard_tool(tools, self.profiles)
        if not isinstance(tools, Sequence) or not all(isinstance(t, BaseTool) for t in tools):
            raise wrong("tools", "a LangChain tool, or several", tools)
        return [guard_tool(t, self.profiles) for t in tools]

    effect = effect

    def _session(
        self,
        *,
        subject: SubjectLike,
        task: str | None = None,
        grant: Grant | str | None = None,
        mandate: Mandate | Mapping[str, Any] | str | Path | None = None,
        agent: str = "session",
        thread: str | None = None,
    ) -> Flow[Session]:
        """Open a session: the same enforcement without LangGraph, for other loops and recorded traces.

        Args:
            subject: as for `run`.
            task: as for `run`.
            grant: as for `run`.
            mandate: as for `run`.
            agent: the agent's name, in records and in the ledger's keys.
            thread: the thread of an earlier session to continue; a new one if absent.

        Raises:
            AuthzDenied: the subject may not start here.
        """
        return Session.open(
            self._engine,
            self.profiles.declared,
            subject=Subject.of(subject),
            task=optional_text("task", task),
            grant=parts.granted(grant, self._revised),
            mandate=load_mandate(mandate) if mandate is not None else None,
            agent=agent,
            thread=thread,
        )

    session, asession = both(_session)

    def _correct(
        self, thread_id: str, text: str, *, graph: GraphLike = None, by: SubjectLike | None = None
    ) -> Flow[int]:
        """Record that somebody changed the task of a thread, and return the new epoch.

        Everything planned before is void from here on. The text reaches the graph with its next input.

        Args:
            thread_id: LangGraph's thread.
            text: the words.
            graph: the graph or its name, if this instance protects several graphs.
            by: the author, if not the thread's own subject. Such words stop the plan, but give no authority.
        """
        author = Subject.of(by) if by is not None else None
        optional_text("text", text)
        said = HumanText(content_digest(text), text, f"correction-{new_id()}")
        return correct(self._scope(thread_id, graph), said, author.principal if author else None)

    correct, acorrect = both(_correct)

    def _approvals(self) -> Flow[list[Approval]]:
        """Return the open questions of this tenant, on every thread. `id` names each.

        Raises:
            ConfigError: the ledger cannot list them.
        """
        return [asked for _, asked in (yield ListAsked(None))]

    approvals, aapprovals = both(_approvals)

    def question(self, approval_id: str) -> Question:
        """Return the content of a statement on `approval_id`, for `credential.approval_statement.sign_statement`.

        Raises:
            AuthzError: `approval_void`: no such question is open.
        """
        return drive(self._engine, open_question(approval_id))

    def _approve(self, approval_id: str, *, by: SubjectLike | None = None, statement: str | None = None) -> Flow[int]:
        """Approve the call that `approval_id` asks about, outside the graph.

        The graph stays paused. A plain resume or another invocation continues without a new question.

        Args:
            approval_id: from the interrupt's payload, `approvals()` or the command line.
            by: the approver, authenticated by the application (`identity.oidc`); only a `user` approves.
            statement: the approver's signed statement (`credential.approval_statement.sign_statement`) instead.

        Returns:
            The number of approvers for whom the question still waits.

        Raises:
            AuthzError: `approval_void` (answered, corrected, of another tenant, unknown), `approval_expired`,
                `approval_approver`, `approval_not_distinct`.
            CredentialError: the statement is not believed.
        """
        person = Subject.of(by) if by is not None else None
        return answer_beside(self.approvers, approval_id, "approve", by=person, statement=statement)

    approve, aapprove = both(_approve)

    def _deny_approval(
        self, approval_id: str, *, by: SubjectLike | None = None, statement: str | None = None, message: str = ""
    ) -> Flow[None]:
        """Reject the call, as in `approve`; one approver is enough.

        The model reads `message`. A message changes the task, as a rejection at the graph does: the next epoch
        opens, and other questions and approvals of the thread are void and asked again.
        """
        person = Subject.of(by) if by is not None else None
        about: dict[str, Any] = {"by": person, "statement": statement, "message": message}
        yield from answer_beside(self.approvers, approval_id, "deny", **about, content=self.audit.content)

    deny_approval, adeny_approval = both(_deny_approval)

    def _data_changed(self, resource: str) -> Flow[None]:
        """Record that a resource changed outside, by the name that the `resource` of profiles gives it.

        Earlier reads of it on threads of this tenant are stale. The shipped policy refuses side effects whose
        critical arguments come from them, and plans made on them are void.
        """
        return data_changed(self.root_entry.scope("", ""), resource, content=self.audit.content)

    data_changed, adata_changed = both(_data_changed)

    def _revoke(
        self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = (), by: str = "", reason: str = ""
    ) -> Flow[None]:
        """Revoke a thread, or an agent's subtree on it, until `reinstate`. The log shows `by` and `reason`."""
        return revoke(self._scope(thread_id, graph), tuple(agent), by, reason)

    revoke, arevoke = both(_revoke)

    def _reinstate(
        self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = (), by: str = "", reason: str = ""
    ) -> Flow[None]:
        """Lift a revocation."""
        return reinstate(self._scope(thread_id, graph), tuple(agent), by, reason)

    reinstate, areinstate = both(_reinstate)

    def compromise_key(self, kid: str) -> None:
        """Withdraw a signing key that is in the wrong hands, and revoke every token that it signed.

        The key leaves this instance's key ring, if it has one. Services that ask the ledger
        (`resource_server.status.LedgerStatus`, introspection) refuse its tokens at once. Others accept them while
        their copy of the key set lives (`credential.jwks.JwksClient`: 60 seconds).

        Raises:
            ConfigError: the ring has no such key.
        """
        (self._ring.compromise if self._ring is not None else self._withdraw_key)(kid)

    def _withdraw_key(self, kid: str) -> None:
        drive(self._engine, revoke(key_scope(self.tenant, self.issuer.issuer, kid), ()))

    def _status(self, claims: Mapping[str, Any]) -> str:
        if self._engine.killed:
            return "revoked"
        return self.ledger.status(str(claims.get("tenant")), str(claims.get("jti")))

    def coverage(self, graph: Pregel[Any, Any, Any, Any]) -> CoverageReport:
        """Return what of `graph` is governed, by which enforcement point, and what is not."""
        from langchain_runtime_authz.langgraph.coverage.discovery import coverage_of

        return coverage_of(graph, self._protection)

    def _scope(self, thread_id: str, graph: GraphLike) -> Scope:
        if graph is None:
            if len(self._names) != 1:
                raise ConfigError(f"this instance protects {len(self._names)} graphs; name one with `graph=`")
            (name,) = self._names
        else:
            name = graph if isinstance(graph, str) else graph.get_name()
        return self.root_entry.scope(name, str(thread_id))
