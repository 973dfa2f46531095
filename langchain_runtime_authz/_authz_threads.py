"""Define methods of `RuntimeAuthz` on threads: correct, approve, revoke, reenter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from langgraph.pregel import Pregel
from langgraph.types import Interrupt, StateSnapshot

from langchain_runtime_authz._flow import methods
from langchain_runtime_authz._validate import of_kind
from langchain_runtime_authz.audit.sinks import AuditSink
from langchain_runtime_authz.errors import Code, ConfigError, LedgerError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.facts.checkpoint_head import HEAD, UNKNOWN
from langchain_runtime_authz.facts.task import ANSWER, CORRECTION, HumanText, content_digest
from langchain_runtime_authz.langgraph.checkpoints import read_state, thread_config
from langchain_runtime_authz.langgraph.graph_entry import RunOpener
from langchain_runtime_authz.langgraph.graph_input import open_questions
from langchain_runtime_authz.langgraph.messages import human_texts, messages_in, update_in
from langchain_runtime_authz.langgraph.run_context import SubjectLike
from langchain_runtime_authz.ledger.base import Approval, InDoubtCall, Query, Scope, Snapshot
from langchain_runtime_authz.pep.calls_in_doubt import record_ends, resolve_doubt
from langchain_runtime_authz.pep.corrections import record_correction
from langchain_runtime_authz.pep.run import Flow, ListDoubts, Load, PepParts, Perform, drive, new_id
from langchain_runtime_authz.pep.thread_acts import (
    ListAsked,
    answer_outside_graph,
    data_changed,
    open_question,
    reinstate_agents,
    revoke_agents,
)

if TYPE_CHECKING:
    from langchain_runtime_authz.credential.approval_statement import Approvers, Question

How = Literal["continue", "send again", "answer", "resolve", "reinstate", "wait", "done"]
_SENTENCES: Final[Mapping[How, str]] = {
    "continue": "the thread stopped on the way; enter it again with `None` as input",
    "send again": "the last input never entered the thread; send it again",
    "answer": "the thread waits for a person; answer with `Command(resume=...)` or `authz.approve`, pass a breakpoint with `None`",
    "resolve": "a call has a permit and no known outcome; find it out and call `authz.resolve_call`, then look again",
    "reinstate": "the thread is revoked; find out why and call `authz.reinstate`, then look again",
    "wait": "an entry is under way, or its process died in the last minute; look again in a minute",
    "done": "the thread has ended; if its input or one of its calls was denied since, send the input again",
}


@dataclass(frozen=True, slots=True)
class Reentry:
    """The next act that a thread needs.

    Attributes:
        how: the act, or `done`. `str()` of this object explains it in a sentence.
        questions: LangGraph's interrupts that wait for an answer; empty if the graph stopped at a breakpoint.
        doubts: the calls of the thread that are in doubt.
        output: the graph's output, if `reenter(go_on=True)` ran the graph.
    """

    how: How
    questions: tuple[Interrupt, ...] = ()
    doubts: tuple[InDoubtCall, ...] = ()
    output: Any = None

    def __str__(self) -> str:
        return f"{self.how}: {_SENTENCES[self.how]}"


GraphLike = Pregel[Any, Any, Any, Any] | str | None


class Threads:
    """The methods of `RuntimeAuthz` that act on threads from outside the graph."""

    run_opener: RunOpener
    approvers: Approvers
    audit: AuditSink
    _pep: PepParts
    _names: set[str]

    def _correct(
        self, thread_id: str, text: str, *, graph: GraphLike = None, by: SubjectLike | None = None
    ) -> Flow[int]:
        """Record a change of a thread's task, and return the new epoch.

        All earlier plans of the thread become void. The text reaches the graph with the thread's next input.

        Args:
            thread_id: LangGraph's thread.
            text: the correction, in the author's words.
            graph: the graph or its name, if this instance protects several graphs.
            by: the author, if not the thread's own subject. A text by another author voids plans, but orders nothing.
        """
        author = Subject.of(by) if by is not None else None
        of_kind("text", text, str | None, "text")
        said = HumanText(content_digest(text), text, CORRECTION + new_id())
        return record_correction(self._scope(thread_id, graph), said, author.principal if author else None)

    correct, acorrect = methods(_correct)

    def _approvals(self) -> Flow[list[Approval]]:
        """Return this tenant's open questions, sorted by thread, the newest thread first.

        The other methods take `Approval.id` as `approval_id`. At most `ledger.base.MAX_ASKED` questions are returned.
        """
        return [asked for _, asked in (yield ListAsked(None))]

    approvals, aapprovals = methods(_approvals)

    def question(self, approval_id: str) -> Question:
        """Return an open question: its graph, thread, tool and digest of arguments.

        Raises:
            AuthzError: `approval_void`: no such question is open.
        """
        return drive(self._pep, open_question(approval_id))

    def _approve(self, approval_id: str, *, by: SubjectLike | None = None, statement: str | None = None) -> Flow[int]:
        """Approve the call that `approval_id` asks about, outside the graph.

        The graph stays paused. The next resume or invocation of the thread continues without asking again.

        Args:
            approval_id: from the interrupt's payload, `approvals()` or the command line.
            by: the approver, whom the application has authenticated (`identity.oidc`). Its type must be `user`.
            statement: in place of `by`, the approver's signed statement (`credential.approval_statement`).

        Returns:
            The number of approvers who must still approve before the call may run.

        Raises:
            AuthzError: `approval_void` (answered, corrected, of another tenant, unknown), `approval_expired`,
                `approval_approver`, `approval_not_distinct`.
            CredentialError: the statement is not accepted.
        """
        person = Subject.of(by) if by is not None else None
        return answer_outside_graph(self.approvers, approval_id, "approve", by=person, statement=statement)

    approve, aapprove = methods(_approve)

    def _deny_approval(
        self, approval_id: str, *, by: SubjectLike | None = None, statement: str | None = None, message: str = ""
    ) -> Flow[None]:
        """Reject the call that `approval_id` asks about.

        One approver is enough, even if the policy wants several. Arguments and errors are those of `approve`. The model
        reads `message`; a `statement` must be signed with the same `message`. As in the graph, a rejection with a
        message changes the task: the epoch advances, and the thread's other questions and approvals become void.
        """
        person = Subject.of(by) if by is not None else None
        about: dict[str, Any] = {"by": person, "statement": statement, "message": message}
        yield from answer_outside_graph(self.approvers, approval_id, "deny", **about, content=self.audit.content)

    deny_approval, adeny_approval = methods(_deny_approval)

    def _unknown_calls(self, scope: Scope | None = None) -> Flow[list[InDoubtCall]]:
        """Return this tenant's calls in doubt, newest first; with `scope`, one thread's.

        Idempotent and failed calls are left out. At most `ledger.base.MAX_ASKED` are returned: resolve these to see
        older ones.
        """
        yield from record_ends(self._pep)
        found: Sequence[InDoubtCall] = yield ListDoubts(self._pep.tenant, None, scope)
        return [one for one in found if one.row.lost]

    unknown_calls, aunknown_calls = methods(_unknown_calls)

    def _resolve_call(self, key: str, *, happened: bool, by: str, reason: str) -> Flow[None]:
        """Record whether a call in doubt happened.

        `key` is the `row.key` of one of `unknown_calls()`. A call that happened never runs again. A call that did not
        happen may run when its thread is entered again. The ledger and the audit log keep `by` (`type:id`) and
        `reason`.

        Raises:
            LedgerError: `not_in_doubt`: the call has an outcome, or may still be running.
            ConfigError: `by` has not the form `type:id`, or the reason is empty or has control characters.
        """
        found: Sequence[InDoubtCall] = yield ListDoubts(self._pep.tenant, key)
        if not found:
            raise LedgerError(Code.NOT_IN_DOUBT, key)
        yield from resolve_doubt(found[0].scope, found[0], happened=happened, author=by, reason=reason)

    resolve_call, aresolve_call = methods(_resolve_call)

    def _reenter(
        self, graph: Pregel[Any, Any, Any, Any], config: Mapping[str, Any], *, input: Any = None, go_on: bool = False
    ) -> Flow[Reentry]:
        """Return what a thread needs after an outage; with `go_on`, continue it.

        Args:
            graph: the protected graph.
            config: the config of the entry that was denied. It names the thread.
            input: the input of that entry. Without it, a lost input is noticed only if the ledger recorded it.
            go_on: run the graph if `how` is `continue`, inside the surrounding `with authz.run(...)`.

        Raises:
            ConfigError: the graph has no checkpointer, or the config names no thread.
            AuthzDenied: the thread continued and was denied again.
        """
        place = thread_config(config)
        if place is None or not graph.checkpointer:
            raise ConfigError(
                "only a thread is entered again: the graph needs a checkpointer, the config a `thread_id`"
            )
        scope = self._scope(str(place["configurable"]["thread_id"]), graph)
        doubts = tuple((yield from self._unknown_calls(scope)))
        snapshot: Snapshot = yield Load(scope, Query(log=True, questions=True, marks=(HEAD,)))
        state: StateSnapshot = yield read_state(graph, place)
        found = Reentry("done", open_questions(state, snapshot), doubts)
        found = replace(found, how=_how(graph, found, snapshot, state, input))
        if go_on and found.how == "continue":
            found = replace(found, output=(yield Perform(graph.invoke, graph.ainvoke, None, config)))
        return found

    reenter, areenter = methods(_reenter)

    def _data_changed(self, resource: str) -> Flow[None]:
        """Record that a resource changed outside the graph.

        `resource` is its name in the tools' profiles. All earlier reads of the resource by this tenant's threads are
        then stale. The shipped policy refuses side effects whose critical arguments come from stale reads, and voids
        the plans that were made after such reads.
        """
        return data_changed(self.run_opener.scope("", ""), resource, content=self.audit.content)

    data_changed, adata_changed = methods(_data_changed)

    def _revoke(
        self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = (), by: str = "", reason: str = ""
    ) -> Flow[None]:
        """Revoke a thread, or an agent and those below it, until `reinstate`."""
        return revoke_agents(self._scope(thread_id, graph), tuple(agent), by, reason)

    revoke, arevoke = methods(_revoke)

    def _reinstate(
        self, thread_id: str, *, graph: GraphLike = None, agent: Sequence[str] = (), by: str = "", reason: str = ""
    ) -> Flow[None]:
        """Lift the revocation of a thread, or of an agent and those below it."""
        return reinstate_agents(self._pep, self._scope(thread_id, graph), tuple(agent), by, reason)

    reinstate, areinstate = methods(_reinstate)

    def _scope(self, thread_id: str, graph: GraphLike) -> Scope:
        if graph is None and len(self._names) != 1:
            raise ConfigError(f"this instance protects {len(self._names)} graphs; name one with `graph=`")
        graph = next(iter(self._names)) if graph is None else graph
        return self.run_opener.scope(graph if isinstance(graph, str) else graph.get_name(), str(thread_id))


def _how(graph: Any, found: Reentry, snapshot: Snapshot, state: StateSnapshot, input: Any) -> How:
    if snapshot.revoked:
        return "reinstate"
    if snapshot.live:
        return "wait"
    if found.doubts:
        return "resolve"
    if state.created_at is None or _never_entered(snapshot, state, input):
        return "send again"
    if not state.next:
        return "done"
    # A graph with breakpoints that stopped is at one of them, unless a node failed.
    pauses = (graph.interrupt_before_nodes or graph.interrupt_after_nodes) and not any(t.error for t in state.tasks)
    return "answer" if found.questions or pauses else "continue"


def _never_entered(snapshot: Snapshot, state: StateSnapshot, input: Any) -> bool:
    """Return True if the graph's state lacks the newest text of `input`.

    Without texts in `input`, look for the newest user message in the ledger's log.
    """
    given = [t for t in human_texts(update_in(input)) if not t.past]
    if not given and snapshot.marks.get(HEAD) == UNKNOWN:
        given = [t for t in snapshot.log if t.own and t.text and not (t.key or "").startswith((ANSWER, CORRECTION))]
    heard = human_texts(messages_in(state.values))
    return bool(given) and not any((given[-1].key or t.key) == t.key and given[-1].digest == t.digest for t in heard)
