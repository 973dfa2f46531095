"""A plan is kept by the checkpointer before it is carried out.

Else a process that dies in between has paid by a plan that is lost, and the next one plans and pays anew.
"""

from __future__ import annotations

from ._kit import *

CONFIG = THREAD


class SlowSaver(InMemorySaver):
    """Takes its time, as a database does; where nobody should wait for it, until the tool ran."""

    def __init__(self, longest: float) -> None:
        super().__init__()
        self.ran, self.longest = threading.Event(), longest

    def put(self, *args: Any) -> Any:
        self.ran.wait(self.longest)
        return super().put(*args)

    async def aput(self, *args: Any) -> Any:
        return await asyncio.to_thread(self.put, *args)


def kept_when_it_ran(form: str, *, longest: float = 0.1, **options: Any) -> list[bool]:
    """Whether the announced call was in the checkpoint as its tool ran, if a checkpoint takes `longest` s at most."""
    saver, kept = SlowSaver(longest), []

    @tool
    def write(text: str) -> str:
        """Write."""
        found = saver.get_tuple(CONFIG)
        messages = found.checkpoint["channel_values"].get("messages", []) if found else []
        kept.append(any(isinstance(m, AIMessage) and m.tool_calls for m in messages))
        saver.ran.set()
        return "written"

    graph = hand_written(replying([call("write", {"text": "x"}, "c")]), [write], checkpointer=saver)
    authz = authz_with(StaticPDP(True))
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
def test_a_plan_is_kept_before_its_tool_runs(form: str) -> None:
    """By LangGraph's own default it is not."""
    assert kept_when_it_ran(form) == [True]


def test_who_asks_for_another_durability_gets_it() -> None:
    """The choice is the caller's, and so is LangGraph's default."""
    assert kept_when_it_ran("invoke", longest=60, durability="async") == [False]
