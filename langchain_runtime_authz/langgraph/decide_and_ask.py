"""Decide a graph task's calls, pause it to ask an approver, and claim the calls.

One interrupt per message lists all its questions. LangGraph matches resume values to a graph task's `interrupt` calls
by their order. So when a graph task runs again, it first repeats the interrupts that it raised before. If another
review runs between the tool node and the tool, the tool's guard decides the call after the review.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from langgraph.errors import GraphBubbleUp, GraphInterrupt

from langchain_runtime_authz.errors import Code
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.facts.checkpoint_head import OF_TASK
from langchain_runtime_authz.langgraph import answer_numbers
from langchain_runtime_authz.langgraph import private_api as private
from langchain_runtime_authz.langgraph.messages import stored_result
from langchain_runtime_authz.langgraph.tool_call_parsing import parses_alike
from langchain_runtime_authz.langgraph.tool_execution import Pending
from langchain_runtime_authz.ledger.base import Approval, Conflict, Query
from langchain_runtime_authz.ledger.changes import SetMark
from langchain_runtime_authz.pep import approval_answers, approval_questions
from langchain_runtime_authz.pep.call import Call, DecidedCall
from langchain_runtime_authz.pep.claim_calls import claim_again, claim_call, claim_once
from langchain_runtime_authz.pep.decide_calls import decide_calls
from langchain_runtime_authz.pep.decide_steps import Entry
from langchain_runtime_authz.pep.decision_log import commit_recorded, record_asks
from langchain_runtime_authz.pep.on_ask import AskHere
from langchain_runtime_authz.pep.run import Block, Commit, Effect, Flow, Load, Run

# Pause for an approver. Raises `GraphInterrupt` until there is an answer, then returns it.
Interrupt: Final = Effect(lambda _, value: answer_numbers.pause(value))
# Like `Interrupt`, if a later question has used this question's number. It accepts only answers to this question.
AskAgain: Final = Effect(lambda _, value: answer_numbers.pause(value, approval_questions.approval_ids(value)))


def _decide(run: Run, calls: Sequence[Call], entry: Entry = None) -> Flow[list[DecidedCall]]:
    known = run.schemas_read or not any(call.profile.ordered for call in calls)
    return decide_calls(run, calls) if known and entry is None else _decide_with_entry(run, calls, entry, known=known)


def _decide_with_entry(run: Run, calls: Sequence[Call], entry: Entry, *, known: bool) -> Flow[list[DecidedCall]]:
    if not known:
        run.schemas_read = True
        # Build the tools' schemas for mandates in a thread, because this takes milliseconds.
        yield (Block, getattr, run.engine.tools, "signatures")
    decided = yield from decide_calls(run, calls, entry)
    if entry is not None:
        yield from entry.enter()
    return decided


def decide_together(
    run: Run,
    calls: Sequence[Call],
    config: Mapping[str, Any],
    *,
    entry: Entry = None,
    had: Callable[[], int] | None = None,
    turn: Callable[[], bool] = bool,
) -> Flow[list[Pending]]:
    """Decide calls that all run in this graph task, before any of them runs.

    No call runs before every question is answered. `had()`: how many answers the graph task has used. `turn()`: True if
    these calls may ask now. If they may not, or an unused answer waits, the graph task pauses without a question.
    """
    decided = yield from _decide(run, calls, entry)
    for one in decided:
        if had is not None and one.row is not None:
            answer_numbers.keep_numbers(config, stored_result(one.row.result).get("answers", ()))
        if one.approval is not None or one.decision.outcome == "approval_required":
            decided = yield from _ask(run, calls, decided, config, had=had, turn=turn)
            break
    waiting: list[Pending] = []
    for place, one in enumerate(decided):
        reviewed, row = one.call.reviewed, one.row
        verdict: Any = None
        if not (reviewed and _for_review(one)):
            verdict = yield from claim_once(run, one)
            if type(verdict) is Conflict:
                _, verdict = yield from claim_again(run, one, verdict)
                if verdict is None:  # the call asks now, so decide and ask about all calls again
                    for other in waiting:
                        yield from other.give_back()
                    return (yield from decide_together(run, calls, config, had=had, turn=turn))
        answered = stored_result(row.result).get("answers", []) if row is not None else []
        if one.replay and reviewed and _asked_by(one, private.task_id(config), review=True):
            answered = [0, *answered]  # the answer to the review, which is not repeated
        paused = row is not None and row.state == "suspended"
        replaced = bool(one.call.edited_by) and _replaced(one)
        waiting.append(Pending(run, one.call, verdict, place, answers=answered, paused=paused, replaced=replaced))
    return waiting


def decide_message(run: Run, calls: Sequence[Call], config: Mapping[str, Any], entry: Entry) -> Flow[list[DecidedCall]]:
    """Decide a message's calls together, to count all of them for the question limit."""
    # LangGraph runs each of the calls in a graph task of its own.
    decided = yield from _decide(run, calls, entry)
    fresh = [j for j in decided if _askable(j) and (j.approval is None or j.approval.state == "spent")]
    if not fresh or run.engine.on_ask is not None or not private.checkpointer_of(config):
        return decided
    try:
        capped = yield from approval_questions.over_cap(run, fresh)
    except Exception as exc:  # noqa: BLE001  (see `pep.decide_calls.decide_calls`)
        return [replace(j, decision=run.engine.deny_for_failure(exc, run)) for j in decided]
    keys = {j.key for j in fresh} if capped else set()
    return [_denied(j, Code.APPROVAL_CAPPED) if j.key in keys else j for j in decided]


def decide_one_of(run: Run, decided: Sequence[DecidedCall], position: int, config: Mapping[str, Any]) -> Flow[Pending]:
    """Decide the call `decided[position]` in its own graph task.

    The first graph task with a question raises one interrupt about all calls; the others pause without a question.
    """
    asked = [i for i, j in enumerate(decided) if _askable(j)]
    mine, graph_task = decided[position], private.task_id(config)
    if _for_review(mine):
        return Pending(run, mine.call, None)
    asked_before = _asked_by(mine, graph_task) is not None
    # If one of the questions that this graph task asked is open, ask all of them again, even answered ones.
    mine_open = any(_asked_by(j, graph_task) and _is_open(j) for j in decided)
    here = run.engine.on_ask is not None  # each graph task asks about its own call
    pauses = private.checkpointer_of(config) and not here
    by = getattr(mine.approval, "task_id", "")  # the graph task that asked; after a fork, there is none
    listed = _is_open(mine) and any(_asked_by(j, by) for j in decided[:position])
    if pauses and _askable(mine) and not asked_before and (position != asked[0] or listed):
        raise GraphInterrupt(())
    if mine.asks or asked_before or not asked:
        whole = not here and bool(asked) and (position == asked[0] or mine_open)
        scope = decided if whole else [mine]
        settled = yield from _ask(run, [j.call for j in scope], scope, config, counted=True)
        mine = settled[position if whole else 0]
    verdict: Any = yield from claim_once(run, mine)
    if type(verdict) is Conflict:
        mine, verdict = yield from claim_again(run, mine, verdict)
        if verdict is None:
            (mine,) = yield from _ask(run, [mine.call], [mine], config)
            _, verdict = yield from claim_call(run, mine)
    return Pending(run, mine.call, verdict, replaced=_replaced(mine))


def _is_open(decided: DecidedCall) -> bool:
    ask = decided.approval
    return ask is not None and ask.state == "asked" and bool(ask.task_id) and decided.asks


def _ask(
    run: Run,
    calls: Sequence[Call],
    decided: Sequence[DecidedCall],
    config: Mapping[str, Any],
    *,
    counted: bool = False,
    had: Callable[[], int] | None = None,
    turn: Callable[[], bool] = bool,
) -> Flow[list[DecidedCall]]:
    """Ask an approver about calls, and return them as decided after the answer.

    For `had` and `turn`, see `decide_together`. `counted`: the limit on questions was checked for the first round.
    """
    graph_task, first = private.task_id(config), decided
    here, pauses = run.engine.on_ask is not None, private.checkpointer_of(config)
    try:
        before = [
            (a, j) for j in decided if graph_task and (a := _asked_by(j, graph_task)) is not None and not _for_review(j)
        ]
        if had is not None:  # the node's code may ask in between, so a spent approval is not a round
            before = [(a, j) for a, j in before if a.state != "spent" or not j.asks]
        if (before or any(j.asks for j in decided)) and _keyed(run, config):
            private.drop_plain_answer(config)
        rounds, withdrawn = yield from _repeat(run, before, config)
        if rounds:
            decided = yield from decide_calls(run, calls)
        refused = {
            j.key: Code.UNREPEATABLE_ARGUMENTS for j in decided if j.asks and not _for_review(j) and not _askable(j)
        }
        fresh = [j for j in decided if _askable(j) and not _is_answerable(j, graph_task)]
        late = bool(fresh) and _is_late(run, decided, fresh, rounds, config, had)
        if fresh and had and pauses and not here and (late or not turn()):
            raise GraphInterrupt(())
        if fresh and (here or (pauses and not late)):
            if not (yield from _ask_anew(run, fresh, rounds, config, counted=counted)):
                refused |= dict.fromkeys((j.key for j in fresh), Code.APPROVAL_CAPPED)
            decided = yield from decide_calls(run, calls)  # if the run has ended, this denies the calls
        # Deny calls that still ask: there is nobody to ask, or the answer does not suffice.
        code = Code.APPROVAL_VOID if here or pauses else Code.APPROVAL_UNAVAILABLE
        decided = [_denied(j, refused.get(j.key, code)) if j.asks and not _for_review(j) else j for j in decided]
        return [_denied(j, Code.APPROVAL_REJECTED) if j.decision.permit and j.key in withdrawn else j for j in decided]
    except GraphBubbleUp:
        raise
    except Exception as exc:  # noqa: BLE001  (see `pep.decide_calls.decide_calls`)
        return [replace(j, decision=run.engine.deny_for_failure(exc, run)) for j in first]


def _repeat(
    run: Run, before: Sequence[tuple[Approval, DecidedCall]], config: Mapping[str, Any]
) -> Flow[tuple[int, set[str]]]:
    """Ask this graph task's earlier questions again, each round by one interrupt.

    Returns the number of rounds, and the keys of calls that were approved and then rejected.
    """
    rounds = max((a.round for a, _ in before), default=-1) + 1
    heard, withdrawn = private.of_execution(run.heard, config)  # ids of answered questions, keys of withdrawn calls
    for number in range(max((a.round + 1 for a, _ in before if a.id in heard), default=0), rounds):
        repeated = [(j, a) for a, j in before if a.round == number]
        answer = yield from _answered(run, config, repeated)
        heard.update(a.id for _, a in repeated)
        yield from _resolve(run, repeated, answer)
        approved = [a for _, a in repeated if a.state == "approved"]
        said = approval_answers.answers([a for _, a in repeated], answer, run.subject) if approved else []
        withdrawn |= {a.call_key for a in said if a.state == "rejected"}.intersection(a.call_key for a in approved)
    return rounds, withdrawn


def _is_answerable(decided: DecidedCall, graph_task: str) -> bool:
    """Return True if `graph_task` asked about the call, and can still be answered."""
    ask, settled = _asked_by(decided, graph_task), decided.approval is not None and decided.approval.state == "approved"
    asked = ask is not None and ask.call_key == decided.key and ask.state != "spent"
    return asked and (decided.doubts_shown or not settled)


def _is_late(
    run: Run,
    decided: Sequence[DecidedCall],
    fresh: Sequence[DecidedCall],
    rounds: int,
    config: Mapping[str, Any],
    had: Callable[[], int] | None,
) -> bool:
    """Return True if a new question would get the answer to another question."""
    # A call that ran may have asked a question of its own. New calls by code come after all answered questions.
    if had is None and all(j.row is None and j.call.by_code for j in fresh):
        return False
    # In this graph task, a review received its answer before the code that asks now.
    graph_task = private.task_id(config)
    answered = rounds + sum(bool(_asked_by(j, graph_task, review=True)) and not j.call.reviewed for j in decided)
    answered += answer_numbers.passed_numbers(config)
    if had:
        answered = had()
    elif answer_numbers.kept_numbers(config) is not None:  # a new question comes after all answers
        answered = len(private.scratchpad_of(config).resume)
    return answer_numbers.answers_left(config, answered, plain=not _keyed(run, config))


def _ask_anew(
    run: Run, fresh: Sequence[DecidedCall], rounds: int, config: Mapping[str, Any], *, counted: bool
) -> Flow[bool]:
    """Ask a new question about calls. Return False if too many were asked already."""
    graph_task, here = private.task_id(config), run.engine.on_ask is not None
    yield from record_asks(run, fresh)
    yield from approval_questions.notify_changed(run, fresh, graph_task)
    yield from _pass_others(run, config)
    opened = approval_questions.questions(run, fresh, rounds, graph_task, private.interrupt_id(config))
    if (here or not counted or rounds) and (yield from approval_questions.over_cap(run, fresh)):
        return False
    if (yield from approval_questions.record_questions(run, fresh, opened)):
        shown = list(zip(fresh, opened, strict=True))
        answer = yield from _answered(run, config, shown, AskHere if here else Interrupt)
        private.of_execution(run.heard, config)[0].update(a.id for a in opened)
        yield from _resolve(run, shown, answer)
    return True


def _pass_others(run: Run, config: Mapping[str, Any], own: str = "") -> Flow[None]:
    """Skip answer numbers whose interrupt ids belong to questions other than `own`."""
    # An answer by interrupt id to one question must not count for another one.
    while private.scratchpad_of(config) is not None and run.engine.on_ask is None:
        mark = f"{OF_TASK}{private.interrupt_id(config)}"
        if (held := (yield Load(run.scope, Query(marks=(mark,)))).marks.get(mark)) in (None, own):
            if own and held is None:
                yield Commit(run.scope, run.guard, [SetMark(mark, own)])
            return
        answer_numbers.pass_number(config)


def _answered(
    run: Run, config: Mapping[str, Any], asked: Sequence[tuple[DecidedCall, Approval]], pause: Effect = Interrupt
) -> Flow[object]:
    """Return the answer to a question, and skip answers to earlier questions."""
    scratchpad, kept_here = private.scratchpad_of(config), answer_numbers.kept_numbers(config)
    question = approval_questions.payload(asked)
    if not asked:  # its calls are not repeated, but LangGraph's counter must count the answer
        with suppress(GraphInterrupt):
            return None if kept_here is not None else (yield pause(question))
        return None
    ids, own = approval_questions.approval_ids(question), asked[0][1].interrupt_id
    settled = all(a.state != "asked" or 0 < a.expires_at <= j.now for j, a in asked)
    plain = settled or not _keyed(run, config)
    while True:
        for number, given in enumerate(scratchpad.resume if scratchpad is not None else ()):
            if private.interrupt_id(config, number) == own:
                if answer_numbers.fits(given, ids, plain=plain) and not (kept_here and number in kept_here):
                    answer_numbers.keep_numbers(config, [number])
                    return given
                if settled and kept_here is not None:
                    return None
                pause = AskAgain
        yield from _pass_others(run, config, ids[0])
        if settled and private.interrupt_id(config) == own and private.unused_answer(config) is None:
            scratchpad.resume.append({answer_numbers.OURS: ids})  # it was answered outside the graph
            continue
        answer = yield pause(question)
        if pause is AskAgain or not own or scratchpad is None:
            return answer


def _keyed(run: Run, config: Mapping[str, Any]) -> bool:
    """Return True if the root entry keyed this thread's answers by interrupt id."""
    return (thread := private.thread_of(config)) is not None and thread == run.keyed_thread


def _asked_by(decided: DecidedCall, graph_task: str, *, review: bool = False) -> Approval | None:
    """Return the question, or the `review`, by which a graph task asked about a call."""
    ask, known = decided.approval, graph_task != "" or not review
    mine = known and ask is not None and ask.task_id == graph_task and (ask.source == "hitl") is review
    return ask if mine else None


def _for_review(decided: DecidedCall) -> bool:
    """Return True if a review asks about the call first, and an answer can permit it."""
    left = decided.decision.permit or decided.asks or decided.approval is not None
    return decided.call.reviewed and not decided.replay and left


def _askable(decided: DecidedCall) -> bool:
    """Return True if we must ask about the call, and its arguments parse alike again."""
    return decided.asks and not _for_review(decided) and parses_alike(decided.call)


def _resolve(run: Run, asked: Sequence[tuple[DecidedCall, Approval]], answer: object) -> Flow[None]:
    """Record the answer, unless the root entry has recorded it.

    The root entry cannot record answers for a child on its own thread. A late answer does not count.
    """
    snapshot, shown = (yield Load(run.scope, Query(asks=True))), {a.id for _, a in asked}
    still = [a for a in snapshot.asks if a.id in shown and not 0 < a.expires_at <= snapshot.now]
    if still:
        with suppress(ValueError):  # then no decision fits its question
            answer = approval_answers.remaining(answer, approval_questions.payload(asked), {a.id for a in still})
        # Only a root entry can advance the epoch, so an edit or a response does not count here.
        given = approval_answers.answers(still, answer, run.subject)
        plain = [replace(a, state="malformed", edited="") if a.edited or a.state == "answered" else a for a in given]
        yield from commit_recorded(run.scope, plain, partial(approval_answers.record_answers, run, still, plain))


def _replaced(decided: DecidedCall) -> bool:
    """Return True if the answer to our question, not to a review, edited the call."""
    return decided.approval is not None and decided.approval.source != "hitl" and bool(decided.call.edited_by)


def _denied(decided: DecidedCall, code: Code) -> DecidedCall:
    return replace(decided, decision=replace(deny(code), reasons=(str(code), *decided.decision.reasons)))
