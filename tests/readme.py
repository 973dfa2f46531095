"""What commands write into README, between two marks of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

README: Final = Path(__file__).parents[1] / "README.md"


def read(name: str) -> str:
    """What stands between the marks of this name."""
    return _parts(name)[1].strip()


def write(name: str, text: str) -> None:
    """Put `text` there."""
    before, _, after = _parts(name)
    README.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def _parts(name: str) -> tuple[str, str, str]:
    text, begin = README.read_text(encoding="utf-8"), f"<!-- {name}:begin -->"
    start, end = text.index(begin) + len(begin), text.index(f"<!-- {name}:end -->")
    return text[:start], text[start:end], text[end:]
