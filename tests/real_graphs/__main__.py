"""Print the table of the shapes: `python -m tests.real_graphs [CONFIGURATION ...]`."""

from __future__ import annotations

import argparse
import logging
import warnings

from .configurations import CONFIGURATIONS, PLAIN
from .runner import play
from .shapes import available
from .table import table


def main() -> None:
    """Play and print."""
    names = {each.name: each for each in (PLAIN, *CONFIGURATIONS)}
    parser = argparse.ArgumentParser(prog="python -m tests.real_graphs", description=__doc__)
    parser.add_argument("configurations", nargs="*", metavar="CONFIGURATION", help=", ".join(names))
    parser.add_argument("--shape", help="only shapes whose name holds this")
    parser.add_argument("--verbose", action="store_true", help="print each play")
    args = parser.parse_args()
    logging.disable()
    warnings.filterwarnings("ignore")
    shapes = [each for each in available() if not args.shape or args.shape in each.name]
    chosen = [names[name] for name in args.configurations] or list(CONFIGURATIONS)
    if args.verbose:
        for shape in shapes:
            for configuration in chosen:
                for task in (*shape.tasks, shape.attack):
                    for user in ("careful", "unread", "nobody"):
                        print(
                            f"{shape.name} | {configuration.name} | {task.name} | {user}: {play(shape, task, configuration, user)}"
                        )
        return
    print(table(shapes, chosen))


if __name__ == "__main__":
    main()
