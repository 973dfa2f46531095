"""A plan is kept by the checkpointer before it is carried out, wherever the ledger outlives the process.

Else a process that dies in between has paid by a plan that is lost, and the next one plans and pays anew.
"""

from __future__ import annotations

from ._kit import *

CONFIG = THREAD


class SlowSaver(InMemorySaver):
    """Takes its time, as a database does; where nobody should wait for it, until the tool ran."""

    def __init__(self, *, awaited: bool) -> None:
        super().__init__()
        self.ran, self.longest = threading.Event(), 0.1 if awaited else 60

    def put(self, *args: Any) -> Any:
        self.ran.wait(self.longest)
        return super().put(*args)

    async def aput(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.put, *args)


def kept_when_it_ran(form: str, ledger: Any = None, *, awaited: bool = False, **options: Any) -> list[bool]:
    """Whether the announced call was in the checkpoint as its tool ran, where checkpoints should be `awaited` or not."""
    saver, kept = SlowSaver(awaited=awaited), []

    @tool
    def write(text: str) -> str:
        """Write."""
        found = saver.get_tuple(CONFIG)
        messages = found.checkpoint["channel_values"].get("messages", []) if found else []
        kept.append(any(isinstance(m, AIMessage) and m.tool_calls for m in messages))
        saver.ran.set()
        return "written"

    graph = hand_written(replying([call("write", {"text": "x"}, "c")]), [write], checkpointer=saver)
    authz = authz_with(StaticPDP(True), ledger=ledger)
    authz.protect(graph)
    with authz.run(subject="alice"):
        if form == "invoke":
            graph.invoke(human(), CONFIG, **options)
        elif form == "stream":
            list(graph.stream(human(), CONFIG, **options))
        else:
            asyncio.run(graph.ainvoke(human(), CONFIG, **options))
    return kept


@pytest.mark.parametrize("form", ["invoke", "stream", "ainvoke"])
def test_a_plan_is_kept_before_its_tool_runs(form: str, tmp_path: Path) -> None:
    """By LangGraph's own default it is not, which a ledger in memory leaves as it is: both die together."""
    with SqliteLedger(tmp_path / "ledger.db") as ledger:
        assert kept_when_it_ran(form, ledger, awaited=True) == [True]
    assert kept_when_it_ran(form) == [False]


def test_who_asks_for_another_durability_gets_it(tmp_path: Path) -> None:
    """The choice is the caller's."""
    with SqliteLedger(tmp_path / "ledger.db") as ledger:
        assert kept_when_it_ran("invoke", ledger, durability="async") == [False]
