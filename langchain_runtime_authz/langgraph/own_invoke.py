"""Tool classes that have an `invoke` of their own: it need not come down to `run`, where a guard usually stands."""

from __future__ import annotations

from typing import Any, Final

from langchain_core.tools import BaseTool

from langchain_runtime_authz.langgraph.guarded import guard_of
from langchain_runtime_authz.langgraph.tool_execution import current_passage
from langchain_runtime_authz.langgraph.way_in import arrived

__all__ = ["acts_by_itself", "own_ways", "within_own_invoke"]

# How a tool is called beside `invoke`. LangChain's own forms come down to it.
_FORMS: Final = (
    "__call__",
    "batch",
    "abatch",
    "batch_as_completed",
    "abatch_as_completed",
    "stream",
    "astream",
    "transform",
    "atransform",
)


def own_ways(base: type[BaseTool]) -> dict[str, Any]:
    """For a tool class that has an `invoke` of its own, which need not come down to `run`: the guard around that.

    Its own forms of batching and streaming are given up for LangChain's, which come down to `invoke`.
    """

    def invoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        way = arrived(self, base, *_sent(input, config))
        with way as passage:
            if passage is not None:
                passage.admits("invoke")
                failed: BaseException | None = None
                try:
                    passage.output = passage.clean(base.invoke(self, input, passage.config, **kwargs))
                except BaseException as exc:  # noqa: BLE001
                    failed = passage.clean_error(exc)
                try:
                    if failed is not None:
                        raise failed  # here, where what was cleaned does not become its context
                finally:
                    del failed  # its traceback holds this frame
        return way.output

    async def ainvoke(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:
        way = arrived(self, base, *_sent(input, config))
        async with way as passage:
            if passage is not None:
                passage.admits("invoke")
                failed: BaseException | None = None
                try:
                    passage.output = passage.clean(await base.ainvoke(self, input, passage.config, **kwargs))
                except BaseException as exc:  # noqa: BLE001
                    failed = passage.clean_error(exc)
                try:
                    if failed is not None:
                        raise failed
                finally:
                    del failed
        return way.output

    own: dict[str, Any] = {name: getattr(BaseTool, name) for name in _FORMS if _is_own(base, name)}
    if _is_own(base, "invoke"):
        own["invoke"] = invoke
    if _is_own(base, "ainvoke"):
        own["ainvoke"] = ainvoke
    return own


def acts_by_itself(tool: BaseTool) -> bool:
    """Whether a tool that nobody guarded may act on a road that LangChain announces to nobody."""
    return any(_is_own(type(tool), name) for name in ("run", "arun", "invoke", "ainvoke", *_FORMS))


def _is_own(base: type[BaseTool], name: str) -> bool:
    """Whether a class that is not LangChain's defines the method."""
    owner = next((c for c in base.__mro__ if name in vars(c)), BaseTool)
    return owner.__module__.partition(".")[0] != "langchain_core"


def _sent(given: Any, config: Any) -> tuple[Any, Any, str | None]:
    """What `invoke` was given, as it is handed to `run`: arguments, config and the tool call's id."""
    if isinstance(given, dict) and given.get("type") == "tool_call":
        return dict(given["args"]), config, given["id"]
    return given, config, None


def within_own_invoke(tool: BaseTool) -> bool:
    """Whether the tool's own `invoke`, which was decided, comes down to `run` as LangChain's does. Once."""
    passage = current_passage()
    if passage is None or passage.of is not guard_of(tool) or not passage.invoked:
        return False
    return passage.admits("run")
