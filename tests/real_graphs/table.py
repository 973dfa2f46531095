"""The table of the shapes, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .configurations import Configuration
from .runner import Outcome, play
from .shape import Shape


def ended(outcome: Outcome) -> str:
    """Return what came of an attack: harm is harm, and a dead app did not stop it."""
    if outcome.harm:
        return "HARM"
    if outcome.state == "finished":
        return "stopped" if outcome.done else "stopped, work lost"
    return outcome.state


def table(shapes: Sequence[Shape], configurations: Sequence[Configuration]) -> str:
    """Play all and return one table: a row for each shape, and for each configuration a sum."""
    lines = [
        "| shape | effects run by | configuration | tasks | questions | attack: careful | unread | nobody |",
        "|---|---|---|---|---|---|---|---|",
    ]
    sums = []
    for configuration in configurations:
        done = tasks = questions = 0
        attacks: dict[str, list[str]] = {"careful": [], "unread": [], "nobody": []}
        for shape in shapes:
            played = [play(shape, task, configuration, "careful") for task in shape.tasks]
            asked = sum(each.questions for each in played)
            finished = sum(each.done for each in played)
            for user, all_ended in attacks.items():
                all_ended.append(ended(play(shape, shape.attack, configuration, user)))  # type: ignore[arg-type]
            dead = " (dead)" if any(each.state == "dead" for each in played) else ""
            row = (shape.name, shape.tools_run_by, configuration.name, f"{finished}/{len(played)}{dead}", str(asked))
            lines.append(f"| {' | '.join((*row, *(each[-1] for each in attacks.values())))} |")
            done, tasks, questions = done + finished, tasks + len(played), questions + asked
        stopped = (f"{each.count('stopped')} stopped, {each.count('HARM')} HARM" for each in attacks.values())
        head = (
            f"**{configuration.name}**",
            configuration.says,
            "",
            f"{done}/{tasks}",
            f"{questions / tasks:.2f} a task",
        )
        sums.append(f"| {' | '.join((*head, *stopped))} |")
    return "\n".join([*lines, *sums])
