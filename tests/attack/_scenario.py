"""What the scenarios by OWASP id share: one agent, the tools it has, and a model that does as the attacker says."""

from ._kit import *

__all__ = ["first_reasons", "forms", "play"]

forms = pytest.mark.parametrize("form", ["invoke", "ainvoke"])


def play(
    form: str, tools: list[Any], *turns: list[Any], authz: RuntimeAuthz | None = None, text: str = "Do the task", saver: Any = None, **run: Any,
) -> dict[str, Any]:
    """The final state of one agent that plays `turns`. Without `authz` it is not protected: the twin."""
    # Turn by turn, whatever stands in the messages: some of them are forged.
    model = ScriptedChatModel(script=[*(says(*turn) for turn in turns), *[says(text="done")] * 5])
    graph = hand_written(model, tools, checkpointer=saver)
    if authz is None:
        return drive_form(form, graph, human(text), THREAD)[0]  # type: ignore[no-any-return]
    graph = authz.protect(graph)
    with authz.run(subject="alice", **{"task": text, **run}):
        return drive_form(form, graph, human(text), THREAD)[0]  # type: ignore[no-any-return]


def first_reasons(authz: RuntimeAuthz, tool: str) -> list[list[str]]:
    """All reasons of each denial of a tool's calls, in order."""
    records = authz.audit.records  # type: ignore[attr-defined]
    return [r["reasons"] for r in records if r["kind"] == "decision" and r["resource"] == tool and r["outcome"] != "permit"]
