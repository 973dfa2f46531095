"""Read and write the tables that commands generate into `docs/_generated`, between two marks in each file."""

from pathlib import Path
from typing import Final

GENERATED: Final = Path(__file__).parents[1] / "docs" / "_generated"


def read(name: str) -> str:
    """Return the table of this name."""
    return _parts(name)[1].strip()


def write(name: str, text: str, part: str = "") -> None:
    """Replace the table of this name, or one part of its page, by `text`."""
    before, _, after = _parts(name, part)
    (GENERATED / f"{name}.md").write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def _parts(name: str, part: str = "") -> tuple[str, str, str]:
    text, begin = (GENERATED / f"{name}.md").read_text(encoding="utf-8"), f"<!-- {part or name}:begin -->"
    start, end = text.index(begin) + len(begin), text.index(f"<!-- {part or name}:end -->")
    return text[:start], text[start:end], text[end:]
