"""Play the shapes and print their tables: `python -m tests.real_graphs [CONFIGURATION ...]`."""

import argparse
import logging
import warnings

from tests import generated

from .configurations import CONFIGURATIONS, PLAIN
from .runner import play
from .shapes import available
from .table import USERS, tables


def main() -> None:
    """Play and print."""
    names = {each.name: each for each in (PLAIN, *CONFIGURATIONS)}
    parser = argparse.ArgumentParser(prog="python -m tests.real_graphs", description=__doc__)
    parser.add_argument("configurations", nargs="*", metavar="CONFIGURATION", help=", ".join(names))
    parser.add_argument("--shape", default="", help="only shapes whose name holds this")
    parser.add_argument("--each", action="store_true", help="print each play instead of the tables")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/_generated")
    args = parser.parse_args()
    logging.disable()
    warnings.filterwarnings("ignore")
    shapes = [each for each in available() if args.shape in each.name]
    if not shapes:
        parser.error(f"no shape's name holds {args.shape!r}; there are: {', '.join(each.name for each in available())}")
    if unknown := [name for name in args.configurations if name not in names]:
        parser.error(f"there is no configuration {unknown[0]!r}; there are: {', '.join(names)}")
    chosen = [names[name] for name in args.configurations] or list(CONFIGURATIONS)
    if args.each:
        plays = ((s, c, t, u) for c in chosen for s in shapes for t in (*s.tasks, s.attack) for u in USERS)
        for shape, configuration, task, user in plays:
            print(shape.name, configuration.name, task.name, user, play(shape, task, configuration, user), sep=" | ", flush=True)
    elif args.write:
        generated.write("real-graphs", tables(shapes, chosen))
    else:
        print(tables(shapes, chosen))


if __name__ == "__main__":
    main()
