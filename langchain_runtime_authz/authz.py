"""Define `RuntimeAuthz`, which connects all parts and has no state of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel

from langchain_runtime_authz import _authz_config as parts
from langchain_runtime_authz._authz_config import TaskSources, with_signature_of
from langchain_runtime_authz._authz_threads import Threads
from langchain_runtime_authz._flow import in_thread, methods
from langchain_runtime_authz._validate import as_mapping, checked_callable, checked_text, of_kind, wrong
from langchain_runtime_authz.agent_profile import AgentProfile, load_agents
from langchain_runtime_authz.audit.sinks import AuditSink, FileSink, MemorySink, newest_record
from langchain_runtime_authz.coverage import observers
from langchain_runtime_authz.errors import ConfigError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.facts.local_time import checked_zone
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.identity.workload import Identity, StaticIdentity
from langchain_runtime_authz.langgraph import declared_effects as effects
from langchain_runtime_authz.langgraph.callback_backstop import install_backstop
from langchain_runtime_authz.langgraph.graph_entry import RunOpener
from langchain_runtime_authz.langgraph.protect import Protection, misspelt_agents, protect
from langchain_runtime_authz.langgraph.run_context import Caller, RunHandle, SubjectLike, as_caller
from langchain_runtime_authz.langgraph.tool_facts import NO_PROFILE, Profiles
from langchain_runtime_authz.langgraph.tool_guard import guard_tool
from langchain_runtime_authz.ledger.base import Ledger
from langchain_runtime_authz.ledger.memory import MemoryLedger
from langchain_runtime_authz.mandate.mandate_file import like_name, load_mandate
from langchain_runtime_authz.mandate.model import Mandate
from langchain_runtime_authz.pdp.base import PDP, Evaluator
from langchain_runtime_authz.pep.calls_in_doubt import OnUnknown
from langchain_runtime_authz.pep.health import Health, HealthCheck, health_app
from langchain_runtime_authz.pep.kill_switch import KillSwitch
from langchain_runtime_authz.pep.mint_tokens import key_scopes
from langchain_runtime_authz.pep.on_ask import OnAsk
from langchain_runtime_authz.pep.run import Flow, LogNotifier, Notifier, PepParts, drive, new_id
from langchain_runtime_authz.pep.run_lifecycle import open_entry
from langchain_runtime_authz.pep.session import Session
from langchain_runtime_authz.pep.thread_acts import withdraw_key
from langchain_runtime_authz.tool_profile import Source, load_profiles

if TYPE_CHECKING:
    from langchain_runtime_authz.audit.explanation import Explanation
    from langchain_runtime_authz.coverage.report import CoverageReport
    from langchain_runtime_authz.credential.approval_statement import Approvers
    from langchain_runtime_authz.credential.issuer import Issuer
    from langchain_runtime_authz.credential.verifier import Verifier

__all__ = ["RuntimeAuthz", "TaskSources"]

_log = logging.getLogger(__name__)

MAX_NAMED = 5  # tools named in the warning
G = TypeVar("G")


class RuntimeAuthz(Threads):
    """Runtime authorization for LangGraph graphs.

    Without arguments, the shipped policy decides in the in-process Wasm engine. Ledger, ES256 signing key and audit
    records are then lost when the process ends. `RuntimeAuthz.production` refuses such parts, and engines that only
    observe.

    Args:
        pdp: the policy decision point. The default is `WasmPDP()`, whose `data` changes the shipped policy's settings.
        issuer: signs the token of each call. By default with a new key, which is lost when the process ends.
        ledger: stores what is known of threads. The default is `MemoryLedger()`.
        identity: names the agents in requests and tokens. The default proves nothing (not attested).
        profiles: tool name → `ToolProfile` (or a word like `ask`), the path of a YAML file, the name of a shipped set
            like `deepagents`, or a list of these. In a list, the later profile of a tool replaces the earlier one. By
            default, the profiles in the policy of `pdp` (`ReloadingPDP`).
        agents: agent name → `AgentProfile`, whose grant limits that agent in every graph and session. The name `*`
            stands for each child agent that `agents` does not name.
        audit: the path of a hash-chained JSONL file, or a sink.
        subject_from: a callable that gets the root config and returns the subject of a run without `authz.run(...)`. A
            caller can write `configurable` and metadata, so trust only what a server verified (`identity.subjects`).
        task_sources: the places in the graph's state and store that hold the task (`TaskSources`).
        kill_switch: the path of a file. While the file exists, every step is denied. The default is the path in the
            environment variable `RUNTIME_AUTHZ_KILL_SWITCH`.
        notify: channel name → `pep.run.Notifier`, for the obligation `notify`. The channel `log` always exists.
        tenant: the tenant of all threads. Ledger keys begin with it, and records and tokens contain it.
        zone: the IANA name of a time zone, like `Europe/Berlin`. It gives policies the local time (`context.local`),
            the date of "tomorrow" in a user's words, and a zone for ordered times that name none.
        planner: a chat model with structured output that compiles the user's message into a mandate. It is asked once
            per user turn, before anything runs. It sees only the user's message, and the tools' profiles and
            signatures. If it fails, the turn has no mandate. Without a planner, `mandate.words` reads declared orders.
        approvers: verifies the signed statements given to `approve` and `deny_approval`. The default accepts only
            approvers whom the application has authenticated (`by=`).
        on_ask: a callable that answers the policy's questions in this process, so that graphs neither pause nor need a
            checkpointer. It gets the question and returns the decisions, both in LangChain's form. Its answer counts as
            the subject's own. It may be asynchronous. `pep.on_ask.ask_in_terminal` asks in the terminal.
        on_unknown: a callable that asks a tool's service whether a call in doubt happened. It gets an `UnknownCall`
            (`pep.calls_in_doubt`). It returns True if the call happened, False if it did not and will not, and None if
            the service cannot tell, so that the call stays in doubt. It may be asynchronous, and has five seconds.
        development: True lets runs without a subject act as the user `developer`. For your own machine only.

    Raises `ConfigError` if an argument is wrong, before anything starts. Raises `LedgerError` (`ledger_rolled_back`) if
    the audit file names a commit that the ledger lacks, for example because a backup was restored.
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
        agents: Mapping[str, AgentProfile | Mapping[str, Any]] | None = None,
        audit: AuditSink | str | Path | None = None,
        subject_from: Callable[[Mapping[str, Any]], Caller | None] | None = None,
        task_sources: TaskSources | None = None,
        kill_switch: str | Path | None = None,
        notify: Mapping[str, Notifier] | None = None,
        tenant: str = "default",
        zone: str | None = None,
        planner: BaseChatModel | None = None,
        approvers: Approvers | None = None,
        on_ask: OnAsk | None = None,
        on_unknown: OnUnknown | None = None,
        development: bool = False,
    ) -> None:
        declared, ceilings = load_profiles(profiles), load_agents(agents)
        checked_text("tenant", tenant)
        for name, called in (("subject_from", subject_from), ("on_ask", on_ask), ("on_unknown", on_unknown)):
            if called is not None:
                checked_callable(name, called)
        if development:
            _log.warning("DEVELOPMENT: runs without a subject act as the user `developer`; do not deploy this")
        # Load the policy engine, the signing library and the language data with the first instance, not at import. A
        # call may be decided on an event loop, which must not wait for a file.
        from langchain_runtime_authz.credential.approval_statement import Approvers
        from langchain_runtime_authz.credential.issuer import Issuer, LocalIssuer
        from langchain_runtime_authz.credential.verifier import Verifier
        from langchain_runtime_authz.langgraph.model_planner import ModelPlanner
        from langchain_runtime_authz.mandate.words import compile_words

        compile_words((), {})  # loads the language data
        issuer = issuer if issuer is not None else LocalIssuer()
        if pdp is None:
            from langchain_runtime_authz.pdp.wasm import WasmPDP

            pdp = WasmPDP()
        self.pdp, self.tenant = pdp, tenant
        self.ledger: Ledger = ledger if ledger is not None else MemoryLedger()
        self.issuer: Issuer = issuer
        self.identity: Identity = identity if identity is not None else StaticIdentity()
        audit = MemorySink() if audit is None else audit  # a sink may be falsy
        self.audit: AuditSink = FileSink(audit) if isinstance(audit, str | Path) else audit
        sources = task_sources if task_sources is not None else TaskSources()
        self.approvers = approvers if approvers is not None else Approvers()
        notifiers = {"log": LogNotifier(), **as_mapping(notify)}
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
            of_kind(name, given, kind, wanted)
        parts.refuse_older(self.ledger, self.audit, tenant)
        brings = [one for one in parts.wrapped_pdps(pdp) if isinstance(one, parts.PolicyBundlePDP)]
        if len(brings) > 1 and profiles is None:
            raise ConfigError(
                "several policies of the `pdp` bring profiles and grants; give the profiles that count as `profiles=`"
            )
        self._revised = brings[0] if len(brings) == 1 else None
        revised = self._revised
        counts = declared if profiles is not None or revised is None else None
        self.profiles = Profiles(counts, None if revised is None else lambda: revised.profiles)
        self._pep = PepParts(
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
            agents=ceilings,
            planner=None if planner is None else ModelPlanner(planner, self.profiles),
            zone=None if zone is None else checked_zone(zone),
            on_ask=on_ask,
            on_unknown=on_unknown,
        )
        self.verifier = Verifier(issuer=issuer.issuer, jwks=issuer.jwks, status=self._status)
        self._ring = issuer.ring if isinstance(issuer, LocalIssuer) else None
        if self._ring is not None:
            self._ring.on_compromise(self._withdraw_key)
            of_key = partial(key_scopes, tenant, issuer.issuer)
            parts.compare_withdrawn(self.ledger, self._ring, of_key, self._withdraw_key)
        self.run_opener = RunOpener(
            self._pep,
            subject_from=subject_from,
            task_channels=sources.channels,
            task_memory=sources.memory,
            development=development,
        )
        self._protection = Protection(self.run_opener, self.profiles)
        self._names: set[str] = set()
        self._checked: object = None  # the newest mandate that was given
        self._health = HealthCheck(self._pep)
        install_backstop()

    @classmethod
    @with_signature_of(__init__)
    def production(cls, **arguments: Any) -> RuntimeAuthz:
        """Return an instance for production, or refuse parts that are unfit for it.

        A part is unfit if it only observes, or if it loses its data when the process ends. This includes defaults.
        Raises `ConfigError`, which names each unfit part and a replacement.
        """
        if found := parts.unfit_for_production(**arguments):
            raise ConfigError("not for production: " + ". ".join(found))
        return cls(**arguments)

    @staticmethod
    def deny_outside_runs() -> None:
        """Deny every unguarded tool outside a run (`no_run`), until this process ends.

        This includes the tools of unprotected graphs. Inside a run, unguarded tools are always decided.
        """
        install_backstop(everywhere=True)

    def __repr__(self) -> str:
        return f"<RuntimeAuthz {self.tenant}: decided by {self.pdp.name}, {type(self.ledger).__name__}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeAuthz:
        return self  # a copied graph stays governed by the same ledger and keys

    def protect(self, graph: G) -> G:
        """Protect a compiled graph (or builder) in place, with every graph it can reach.

        Returns the same object; a second call changes nothing. Warns about tools without a profile, about names in
        `agents` that look misspelt, and about a missing checkpointer, without which nobody can be asked. Raises
        `AlreadyProtected` if another instance protects the graph or a part of it, `ConfigError` if it is not a graph.
        """
        protected: Any = graph
        tools = protect(protected, self._protection)
        if not isinstance(protected, Pregel):
            return graph
        self._names.add(protected.get_name())
        if found := [name + f": {p.why}" * (p.why != NO_PROFILE) for name, p in tools.items() if not p.declared]:
            names = ", ".join((*found[:MAX_NAMED], "…") if len(found) > MAX_NAMED else found)
            warnings.warn(
                f"{len(found)} of {len(tools)} tools without a profile ({names}): each of their calls asks. "
                "`runtime-authz init module:graph` adds profiles, and `runtime-authz profile check` says which tools changed",
                stacklevel=2,
            )
        for name, meant in misspelt_agents(self._pep.agents, protected):
            warnings.warn(f"`agents[{name!r}]` limits no agent: is `{meant}` meant?", stacklevel=2)
        served = "langgraph_api" in sys.modules  # the Agent Server brings a checkpointer
        if tools and not (protected.checkpointer or served or self._pep.on_ask):
            warnings.warn(
                "the graph has no checkpointer, so nobody can be asked and a call that needs an approval is denied: "
                "compile it with one, or give `RuntimeAuthz(on_ask=...)`",
                stacklevel=2,
            )
        return graph

    def run(
        self,
        *,
        subject: Caller,
        task: str | None = None,
        grant: Grant | str | None = None,
        mandate: Mandate | Mapping[str, Any] | str | Path | None = None,
    ) -> RunHandle:
        """Open a run: `with authz.run(subject="alice", task="…"): graph.invoke(…)`.

        Args:
            subject: a user's name, or `{type, id, properties}`. Agents, crons and webhooks are `agent` or `service`,
                never `user`. For a call from another server's agent: that agent's verified credential.
            task: the user's request, recorded in the ledger before anything runs.
            grant: the most that this run may do: a `Grant`, or the name of a grant in the policy of `pdp`
                (`ReloadingPDP`). With `None` only the policy limits the run.
            mandate: what the task orders, if the application knows it (`mandate.model`): a `Mandate`, its JSON form or
                the path of a YAML file. It replaces the mandate that a planner or `mandate.words` would compile. It
                holds on the thread until the task changes, also in later runs without `mandate`.

        Warns about tools in the mandate that look misspelt. Raises `ConfigError` if an argument is wrong.
        """
        ordered = load_mandate(mandate) if mandate is not None else None
        if ordered is not None and mandate is not self._checked:
            for tool in {step.tool for step in ordered.steps} - {*self.profiles.declared}:
                if hint := like_name(tool, self.profiles.declared):
                    warnings.warn(f"the mandate orders `{tool}`, which has no profile{hint}", stacklevel=2)
            self._checked = mandate
        return RunHandle(
            self._pep,
            as_caller(subject),
            of_kind("task", task, str | None, "text"),
            parts.resolve_grant(grant, self._revised),
            ordered,
        )

    @overload
    def guard(self, tools: BaseTool) -> BaseTool: ...

    @overload
    def guard(self, tools: Sequence[BaseTool]) -> list[BaseTool]: ...

    def guard(self, tools: BaseTool | Sequence[BaseTool]) -> BaseTool | list[BaseTool]:
        """Return guarded copies of tools, for code that calls tools without a graph.

        Raises `AlreadyProtected` if another instance guards a tool, `ConfigError` if a tool is not a LangChain tool.
        """
        if isinstance(tools, BaseTool):
            return guard_tool(tools, self.profiles)
        if not isinstance(tools, Sequence) or not all(isinstance(t, BaseTool) for t in tools):
            raise wrong("tools", "a LangChain tool, or several", tools)
        return [guard_tool(t, self.profiles) for t in tools]

    effect, observe_process = effects.effect, observers.observe_process

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
        """Open a session: the same enforcement for agent loops without LangGraph.

        The first four arguments are as for `run`. `agent` is the agent's name in records and ledger keys. `thread` is
        the thread of an earlier session to continue; by default a new one. Raises `AuthzDenied` if the run may not
        start.
        """
        handle = self.run(subject=Subject.of(subject), task=task, grant=grant, mandate=mandate)
        scope = self.run_opener.scope(agent, thread or f"session:{new_id()}")
        entry = yield from open_entry(self._pep, scope, handle.subject, handle.run_id, agent, **handle.brings())
        return Session(entry.run)

    session, asession = methods(_session)

    def compromise_key(self, kid: str) -> None:
        """Withdraw a compromised signing key, and revoke every token that it signed.

        The key leaves this instance's key ring, if the instance has one. Services that ask the ledger
        (`resource_server.status.LedgerStatus`, introspection) refuse the key's tokens at once. Other services accept
        the tokens until they read the key set again (`credential.jwks.JwksClient`: within 60 seconds). Raises
        `ConfigError` if the ring lacks the key.
        """
        (self._ring.compromise if self._ring is not None else self._withdraw_key)(kid)

    def _withdraw_key(self, kid: str) -> None:
        drive(self._pep, withdraw_key(*key_scopes(self.tenant, self.issuer.issuer, kid)))

    def _status(self, claims: Mapping[str, Any]) -> str:
        if self._pep.killed:
            return "revoked"
        return self.ledger.status(str(claims.get("tenant")), str(claims.get("jti")))

    def health(self) -> Health:
        """Return the health of this instance's parts, within two seconds. Never raises."""
        return self._health.look()

    async def ahealth(self) -> Health:
        """Do what `health` does, without blocking the event loop."""
        return await asyncio.wrap_future(in_thread(self._health.look, "health"))

    def health_app(self) -> Callable[..., Awaitable[None]]:
        """Return an ASGI app for liveness and readiness probes.

        Mount it at `/health`: it answers `/health/live` and `/health/ready`. If a part is down, `ready` answers 503
        with its name.
        """
        return health_app(self.ahealth)

    def explain(self, decision_id: str) -> Explanation:
        """Explain a decision: what was decided, why, and what to do.

        Searches this instance's last decisions, then the audit sink if it is in memory or a file. The text may show the
        call's arguments. Raises `ConfigError` if no decision has this id.
        """
        from langchain_runtime_authz.audit.explanation import explain

        if (found := self._pep.recent.find(decision_id) or newest_record(self.audit, decision_id)) is None:
            raise ConfigError(f"no decision {decision_id!r} is remembered; look for it in the audit log")
        return explain(found)

    def coverage(self, graph: Pregel[Any, Any, Any, Any]) -> CoverageReport:
        """Report which parts of `graph` are governed, and by which enforcement point."""
        from langchain_runtime_authz.coverage.report_rows import coverage_of

        return coverage_of(graph, self._protection)
