"""Decide a graph task's calls, pause it to ask an approver, and claim the calls.

One interrupt per message lists all its questions. LangGraph matches resume values to a graph task's `interrupt` calls
by their order. So when a graph task runs again, it first repeats the interrupts that it raised before. If another
review runs between the tool node and the tool, the tool's guard decides the call after the review.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from langgraph.errors import GraphBubbleUp, GraphInterrupt

from langchain_runtime_authz._flow import running_loop
from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.langgraph import interrupts
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.call_messages import parses_alike, stored_result
from langchain_runtime_authz.langgraph.tool_execution import PAUSE, PendingCall
from langchain_runtime_authz.ledger.base import Approval, Conflict, Query, Snapshot
from langchain_runtime_authz.ledger.call_changes import AskApproval
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.pep import approval_answers, approval_questions
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.claim_calls import claim_again, claim_call, try_claim
from langchain_runtime_authz.pep.conclude_calls import deny_call
from langchain_runtime_authz.pep.decide_calls import decide_calls
from langchain_runtime_authz.pep.decide_steps import Entry
from langchain_runtime_authz.pep.decision_log import commit_recorded, record_asking_calls
from langchain_runtime_authz.pep.on_ask import AskHere
from langchain_runtime_authz.pep.run import Block, Commit, Effect, Flow, Load, Run

_SKIPPED: Final[dict[str, list[str]]] = {interrupts.OURS: []}  # stored as the answer with a skipped number
# Pause for an approver. Raises `GraphInterrupt` until there is an answer, then returns it.
Interrupt: Final = Effect(lambda _, value: interrupts.interrupt_for(value))

PATIENCE: Final = 30.0  # seconds that a call waits while another call of its graph task asks


def _wait(_: object) -> bool:
    """Wait. Return False if that would block an event loop, and the call that asks."""
    if running_loop() is not None:
        return False
    time.sleep(PAUSE)
    return True


_Wait: Final = Effect(_wait, lambda _: asyncio.sleep(PAUSE, True))


def _decide(run: Run, calls: Sequence[Call], entry: Entry = None) -> Flow[list[DecidedCall]]:
    known = run.local.schemas_read or not any(call.profile.needs_mandate for call in calls)
    return decide_calls(run, calls) if known and entry is None else _decide_with_entry(run, calls, entry, known=known)


def _decide_with_entry(run: Run, calls: Sequence[Call], entry: Entry, *, known: bool) -> Flow[list[DecidedCall]]:
    if not known:
        run.local.schemas_read = True
        # Build the tools' schemas for mandates in a thread, because this takes milliseconds.
        yield (Block, getattr, run.pep.tools, "schemas")
    decided = yield from decide_calls(run, calls, entry)
    if entry is not None:
        yield from entry.enter()
    return decided


def decide_together(
    run: Run, calls: Sequence[Call], config: Mapping[str, Any], *,
    entry: Entry = None, may_ask: Callable[[], bool] | None = None, gate: bool = False, again: bool = False,
) -> Flow[list[PendingCall]]:  # fmt: skip
    """Decide the calls of one graph task, and ask all their questions before one runs.

    `may_ask`, for a hand-written node's calls, returns True if they may ask now. If they may not, or if LangGraph holds an
    answer that no question has used, the graph task pauses without a question. `gate`: the calls are a tool node's, and
    code asks no question before theirs.
    """
    decided = yield from _decide(run, calls, entry)
    for one in decided:
        if may_ask is not None and one.row is not None:
            interrupts.keep_numbers(config, stored_result(one.row.result).get("answers", ()))
        if one.approval is not None or one.decision.outcome == "approval_required":
            decided = yield from _Asking(run, config, may_ask, gate=gate).ask(calls, decided)
            break
    waiting: list[PendingCall] = []
    for place, one in enumerate(decided):
        reviewed, row = one.call.reviewed, one.row
        verdict: Any = None
        if not (reviewed and _for_review(one)):
            verdict = yield from try_claim(run, one)
            if type(verdict) is Conflict:
                anew, verdict = yield from claim_again(run, one, verdict)
                if verdict is None and not again:  # the call asks now, so decide and ask about all calls again
                    for other in waiting:
                        yield from other.give_back()
                    return (yield from decide_together(run, calls, config, may_ask=may_ask, gate=gate, again=True))
                verdict = verdict or (yield from deny_call(run, anew))
        answered = stored_result(row.result).get("answers", []) if row is not None else []
        if one.replay and reviewed and _asked_by(one, private.task_id(config), review=True):
            answered = [0, *answered]  # the answer to the review, which is not repeated
        paused = row is not None and row.state == "suspended"
        replaced = bool(one.call.edited_by) and _replaced(one)
        waiting.append(PendingCall(run, one.call, verdict, place, answers=answered, paused=paused, replaced=replaced))
    return waiting


def decide_message(run: Run, calls: Sequence[Call], config: Mapping[str, Any], entry: Entry) -> Flow[list[DecidedCall]]:
    """Decide a message's calls together, and check the limit on questions for all."""
    # LangGraph runs each of the calls in a graph task of its own.
    decided = yield from _decide(run, calls, entry)
    fresh = [j for j in decided if _askable(j) and (j.approval is None or j.approval.state == "spent")]
    if not fresh or not _Asking(run, config).pauses:
        return decided
    try:
        capped = yield from approval_questions.over_cap(run, fresh)
    except Exception as exc:  # noqa: BLE001  (see `pep.decide_calls.decide_calls`)
        return [replace(j, decision=run.pep.deny_for_failure(exc, run)) for j in decided]
    keys = {j.key for j in fresh} if capped else set()
    return [_denied(j, Code.APPROVAL_CAPPED) if j.key in keys else j for j in decided]


def decide_one_of(
    run: Run, decided: Sequence[DecidedCall], position: int, config: Mapping[str, Any]
) -> Flow[PendingCall]:
    """Decide the call `decided[position]` in its own graph task.

    The first graph task with a question raises one interrupt about all calls; the others pause without a question.
    """
    mine, asking = decided[position], _Asking(run, config, gate=True)
    if _for_review(mine):
        return PendingCall(run, mine.call, None)
    askable = [i for i, j in enumerate(decided) if _askable(j)]
    first, asked_before = askable[:1] == [position], _asked_by(mine, asking.task) is not None
    if asking.pauses and position in askable and not asked_before:
        ask = mine.approval  # by another graph task, if LangGraph has started this one anew
        listed = ask is not None and _is_open(mine) and any(_asked_by(j, ask.task_id) for j in decided[:position])
        if listed or not first:
            raise GraphInterrupt(())
    if mine.needs_approval or asked_before:
        # If one of the questions that this graph task asked is open, ask all of them again, even answered ones.
        again = any(_asked_by(j, asking.task) and _is_open(j) for j in decided)
        whole = not asking.here and (first or again)
        scope = decided if whole else [mine]
        settled = yield from asking.ask([j.call for j in scope], scope, counted=True)
        mine = settled[position if whole else 0]
    verdict: Any = yield from try_claim(run, mine)
    if type(verdict) is Conflict:
        mine, verdict = yield from claim_again(run, mine, verdict)
        if verdict is None:
            (mine,) = yield from asking.ask([mine.call], [mine])
            _, verdict = yield from claim_call(run, mine)
    return PendingCall(run, mine.call, verdict, replaced=_replaced(mine))


def _is_open(decided: DecidedCall) -> bool:
    """Return True if a graph task asked about the call, and the question is open."""
    ask = decided.approval
    return ask is not None and ask.state == "asked" and bool(ask.task_id) and decided.needs_approval


@dataclass(slots=True, eq=False)
class _Execution:
    """The state that the calls of one execution of a graph task share."""

    turn: threading.Lock = field(default_factory=threading.Lock)  # held by the call that asks
    question: GraphInterrupt | None = None  # the one that LangGraph shows
    answered: set[str] = field(default_factory=set)  # ids of questions
    withdrawn: set[str] = field(default_factory=set)  # keys of rejected calls


class _Asking:
    """Asks an approver about calls of a graph task, like `decide_together`."""

    def __init__(
        self, run: Run, config: Mapping[str, Any], may_ask: Callable[[], bool] | None = None, *, gate: bool = False
    ) -> None:
        self.run, self.config, self.may_ask, self.gate = run, config, may_ask, gate
        self.task = private.task_id(config)
        self.here = run.pep.on_ask is not None  # `on_ask` answers at once
        self.pauses = not self.here and bool(private.checkpointer_of(config))
        self._pad, self._numbers = private.scratchpad_of(config), interrupts.numbers_of(config)
        self._raised: Exception | None = None  # by LangGraph's `interrupt`

    @property
    def _keyed(self) -> bool:
        """Return True if the root entry stored this thread's answers by interrupt id."""
        return (thread := private.thread_of(self.config)) is not None and thread == self.run.keyed_thread

    @property
    def _execution(self) -> _Execution:
        return self.run.local.executions.setdefault(interrupts.execution_of(self.config), _Execution())  # type: ignore[no-any-return]

    def ask(
        self, calls: Sequence[Call], decided: Sequence[DecidedCall], *, counted: bool = False
    ) -> Flow[list[DecidedCall]]:
        """Ask about decided calls, and return them as decided after the answer.

        `counted`: the caller has checked the limit on questions for the first round.
        """
        try:
            if self.pauses and self.may_ask is None:
                return (yield from self._ask_in_turn(calls, decided, counted=counted))
            return (yield from self._ask(calls, decided, counted=counted))
        except Exception as exc:
            if isinstance(exc, GraphBubbleUp) or exc is self._raised:
                raise
            return [replace(j, decision=self.run.pep.deny_for_failure(exc, self.run)) for j in decided]

    def _pause(self, pause: Effect, question: Mapping[str, Any]) -> Flow[object]:
        """Pause for an answer. An error of LangGraph is not one of the ledger."""
        try:
            return (yield pause(question))
        except Exception as exc:
            self._raised = exc
            raise

    def _ask_in_turn(
        self, calls: Sequence[Call], decided: Sequence[DecidedCall], *, counted: bool
    ) -> Flow[list[DecidedCall]]:
        """Ask when no other call of the graph task asks, and raise an open question again."""
        mine, until = self._execution, time.monotonic() + PATIENCE
        while not mine.turn.acquire(blocking=False):  # threads and coroutines cannot wait for each other's lock
            if time.monotonic() > until or not (yield (_Wait,)):
                return [_denied(j, Code.APPROVAL_UNAVAILABLE) if _must_ask(j) else j for j in decided]
        try:
            if mine.question is not None:
                raise mine.question
            return (yield from self._ask(calls, decided, counted=counted))
        except GraphInterrupt as exc:
            mine.question = exc
            raise
        finally:
            mine.turn.release()

    def _ask(self, calls: Sequence[Call], decided: Sequence[DecidedCall], *, counted: bool) -> Flow[list[DecidedCall]]:
        rounds, withdrawn = yield from self._repeat(decided)
        if rounds:
            decided = yield from decide_calls(self.run, calls)
        asking = [j for j in decided if _must_ask(j)]
        refused = {j.key: Code.UNREPEATABLE_ARGUMENTS for j in asking if not parses_alike(j.call)}
        fresh = [j for j in asking if j.key not in refused and not _is_answerable(j, self.task)]
        late = self.pauses and bool(fresh) and (yield from self._belongs_to_another())
        if fresh and self.pauses and self.may_ask is not None and (late or not self.may_ask()):
            raise GraphInterrupt(())
        if fresh and (self.here or self.pauses) and not late:
            if not (yield from self._ask_anew(fresh, rounds, counted=counted)):
                refused |= dict.fromkeys((j.key for j in fresh), Code.APPROVAL_CAPPED)
            decided = yield from decide_calls(self.run, calls)  # if the run has ended, this denies the calls
        # Deny calls that still ask: there is nobody to ask, or the answer does not suffice.
        code = Code.APPROVAL_VOID if self.here or self.pauses else Code.APPROVAL_UNAVAILABLE
        decided = [_denied(j, refused.get(j.key, code)) if _must_ask(j) else j for j in decided]
        return [_denied(j, Code.APPROVAL_REJECTED) if j.decision.permit and j.key in withdrawn else j for j in decided]

    def _repeat(self, decided: Sequence[DecidedCall]) -> Flow[tuple[int, set[str]]]:
        """Ask this graph task's earlier questions again, each round by one interrupt.

        Returns the number of rounds, and the keys of calls that were approved and then rejected.
        """
        asked = [(j, a) for j in decided if self.task and (a := _asked_by(j, self.task)) and not _for_review(j)]
        if self.may_ask is not None:  # the node's code may ask in between, so a spent approval is not a round
            asked = [(j, a) for j, a in asked if a.state != "spent" or not j.needs_approval]
        if (asked or any(j.needs_approval for j in decided)) and self._keyed:
            private.take_plain_answer(self.config)
        rounds = max((a.round for _, a in asked), default=-1) + 1
        heard, withdrawn = self._execution.answered, self._execution.withdrawn
        for number in range(max((a.round + 1 for _, a in asked if a.id in heard), default=0), rounds):
            repeated = [(j, a) for j, a in asked if a.round == number]
            if not repeated:
                if self._numbers is None:  # LangGraph's counter must count the answer
                    with suppress(GraphInterrupt):
                        yield from self._pause(Interrupt, approval_questions.interrupt_value([]))
                continue
            answer = yield from self._answered(repeated)
            heard.update(a.id for _, a in repeated)
            yield from _resolve(self.run, repeated, answer)
            approved = [a for _, a in repeated if a.state == "approved"]
            said = approval_answers.read_answers([a for _, a in repeated], answer, self.run.subject) if approved else []
            withdrawn |= {a.call_key for a in said if a.state == "rejected"}.intersection(a.call_key for a in approved)
        return rounds, withdrawn

    def _belongs_to_another(self) -> Flow[bool]:
        """Return True if a new question would receive the answer to another question."""
        plain = not self._keyed and private.unused_answer(self.config) is not None
        if self.may_ask is None and not self.gate:  # a new question comes after all answers
            return plain and (yield from self._asked_next()) is None
        answers = self._pad.resume if self._pad is not None else []
        if self._numbers is None:
            return plain or any(answer != _SKIPPED for answer in answers[private.next_number(self.config) :])
        return plain or (self.may_ask is not None and any(n not in self._numbers for n in range(len(answers))))

    def _ask_anew(self, fresh: Sequence[DecidedCall], rounds: int, *, counted: bool) -> Flow[bool]:
        """Ask a new question about calls. Return False if the limit is reached."""
        run, config = self.run, self.config
        answers = self._pad.resume if self._pad is not None else []
        own = self.pauses and not self.gate and self._numbers is None
        if own and private.next_number(config) > len(answers):
            raise GraphInterrupt(())  # the code has an open question of its own, which has the next number
        yield from record_asking_calls(run, fresh)
        yield from approval_questions.notify_changed(run, fresh, self.task)
        yield from self._pass_others()
        opened = approval_questions.question_rows(run, fresh, rounds, self.task, private.interrupt_id(config))
        if (self.here or not counted or rounds) and (yield from approval_questions.over_cap(run, fresh)):
            return False
        if (yield from approval_questions.record_questions(run, fresh, opened)):
            shown = list(zip(fresh, opened, strict=True))
            answer = yield from self._answered(shown, AskHere if self.here else Interrupt)
            self._execution.answered.update(a.id for a in opened)
            yield from _resolve(run, shown, answer)
        return True

    def _asked_next(self) -> Flow[str | None]:
        """Return the approval whose question has the next answer number, or None."""
        mark = f"{OF_TASK}{private.interrupt_id(self.config)}"
        snapshot: Snapshot = yield Load(self.run.scope, Query(marks=(mark,)))
        return snapshot.marks.get(mark)

    def _pass_others(self, own: str = "") -> Flow[None]:
        """Skip answer numbers whose interrupt ids belong to questions other than `own`."""
        # An answer by interrupt id to one question must not count for another one.
        run = self.run
        shared = self._numbers is not None and self._numbers.asks  # with a tool's question that is asked now
        while self._pad is not None and not (self.here or shared):
            if (held := (yield from self._asked_next())) in (None, own):
                if own and held is None:
                    mark = SetMark(f"{OF_TASK}{private.interrupt_id(self.config)}", own)
                    yield Commit(run.scope, run.guard, [mark])
                return
            if not (self._keyed or self.gate or self.may_ask) and private.unused_answer(self.config) is not None:
                self._pad.resume.append(private.take_plain_answer(self.config))  # for the question that was shown
                continue
            self._pad.resume.append(dict(_SKIPPED))
            interrupts.keep_numbers(self.config, [len(self._pad.resume) - 1])

    def _renumber(self, asked: Sequence[tuple[DecidedCall, Approval]]) -> Flow[str]:
        """Give a question the next free answer number. Return its interrupt id."""
        yield from self._pass_others()
        again = [replace(a, interrupt_id=private.interrupt_id(self.config)) for _, a in asked]
        mark = SetMark(f"{OF_TASK}{again[0].interrupt_id}", again[0].id)
        yield Commit(self.run.scope, self.run.guard, [*map(AskApproval, again), mark])
        return again[0].interrupt_id

    def _answered(self, asked: Sequence[tuple[DecidedCall, Approval]], pause: Effect = Interrupt) -> Flow[object]:
        """Return the answer to a question, or pause. Skip answers to earlier questions."""
        config, question = self.config, approval_questions.interrupt_value(asked)
        ids, own, again = approval_questions.approval_ids(question), asked[0][1].interrupt_id, False
        settled = all(a.state != "asked" or 0 < a.expires_at <= j.now for j, a in asked)  # it needs no answer
        while True:
            if (number := private.number_of(config, own)) is not None:
                free = self._numbers is None or self._numbers.is_free(number)
                given, plain = self._pad.resume[number], free and (settled or not self._keyed)
                if interrupts.is_marked_for(given, ids, plain=plain):
                    interrupts.keep_numbers(config, [number])
                    return given
                if settled:
                    return None
                again, own = True, (yield from self._renumber(asked))  # another question has its number
            yield from self._pass_others(ids[0])
            if settled and private.interrupt_id(config) == own and private.unused_answer(config) is None:
                self._pad.resume.append({interrupts.OURS: ids})  # it was answered outside the graph
                continue
            if self.may_ask is None and self.pauses:
                passed = self._numbers is None and (not self.gate or again)
                private.keep_answers(config, passed=passed)
            answer = yield from self._pause(pause, question)
            if not own or self._pad is None:
                return answer


def _is_answerable(decided: DecidedCall, graph_task: str) -> bool:
    """Return True if `graph_task`'s question about the call can still be answered."""
    ask = _asked_by(decided, graph_task)
    if ask is None or ask.call_key != decided.key or ask.state == "spent":
        return False
    return ask.state != "approved" or decided.doubts_shown


def _asked_by(decided: DecidedCall, graph_task: str, *, review: bool = False) -> Approval | None:
    """Return a graph task's question about a call. `review`: that of another review."""
    ask, known = decided.approval, graph_task != "" or not review
    mine = known and ask is not None and ask.task_id == graph_task and (ask.source == "hitl") is review
    return ask if mine else None


def _for_review(decided: DecidedCall) -> bool:
    """Return True if another review asks about the call first, and may permit it."""
    left = decided.decision.permit or decided.needs_approval or decided.approval is not None
    return decided.call.reviewed and not decided.replay and left


def _must_ask(decided: DecidedCall) -> bool:
    """Return True if we must ask about the call."""
    return decided.needs_approval and not _for_review(decided)


def _askable(decided: DecidedCall) -> bool:
    """Return True if we must ask, and a second parse gives the same arguments."""
    return _must_ask(decided) and parses_alike(decided.call)


def _resolve(run: Run, asked: Sequence[tuple[DecidedCall, Approval]], answer: object) -> Flow[None]:
    """Record the answer, unless the root entry has recorded it.

    The root entry cannot record it for a child graph with a thread of its own. A late answer does not count.
    """
    snapshot, shown = (yield Load(run.scope, Query(questions=True))), {a.id for _, a in asked}
    still = [a for a in snapshot.questions if a.id in shown and not 0 < a.expires_at <= snapshot.now]
    if still:
        question = approval_questions.interrupt_value(asked)
        with suppress(ValueError):  # then no decision fits its question
            answer = approval_answers.remaining_decisions(answer, question, {a.id for a in still})
        # Only a root entry can advance the epoch, so an edit or a response does not count here.
        given = approval_answers.read_answers(still, answer, run.subject)
        plain = [replace(a, state="malformed", edited="") if a.edited or a.state == "answered" else a for a in given]
        yield from commit_recorded(run.scope, plain, partial(approval_answers.record_answers, run, still, plain))


def _replaced(decided: DecidedCall) -> bool:
    """Return True if an answer to our question edited the call, not one to a review."""
    return decided.approval is not None and decided.approval.source != "hitl" and bool(decided.call.edited_by)


def _denied(decided: DecidedCall, code: Code) -> DecidedCall:
    return replace(decided, decision=replace(deny(code), reasons=(str(code), *decided.decision.reasons)))
