"""What a developer declares where an app acts without a tool: the app's functions, with `authz.effect` around them."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from langchain_runtime_authz import AuthzDenied

from ..apps import codeact, executive_assistant


def _executive_assistant(authz: Any) -> dict[str, Callable[..., Any]]:
    names = ("send_email", "send_calendar_invite", "upsert_memory")
    return {name: authz.effect(name)(getattr(executive_assistant, name)) for name in names}


def _codeact(authz: Any) -> dict[str, Callable[..., Any]]:
    run_code = authz.effect("run_code", arguments=lambda code, variables: {"code": code})(codeact.evaluate)

    def evaluate(code: str, variables: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        try:
            return run_code(code, variables)
        except AuthzDenied as denied:
            return f"Error during execution: {denied}", {}

    return {"evaluate": evaluate}


DECLARED: Final[Mapping[str, Callable[[Any], Mapping[str, Callable[..., Any]]]]] = {
    "executive_assistant": _executive_assistant, "codeact": _codeact,
}
