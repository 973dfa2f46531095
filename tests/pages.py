"""Run each start page from an empty environment: a copy of the repository, its files, its commands in order.

`python -m tests.pages [PAGE]...`; a page is a Markdown file whose program blocks have a title.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTS = sorted([*ROOT.glob("docs/start/*.md"), ROOT / "docs/recipes/mail.md", ROOT / "docs/SKILL.md"])
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*_cache", "__pycache__", "long-results*")


def files(text: str) -> dict[str, str]:
    """Return the files that a page shows, by name."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL))


def commands(text: str) -> list[str]:
    """Return the page's shell blocks, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(page: Path) -> None:
    """Run one page. Raises `CalledProcessError`: a command failed."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        clone = Path(folder) / "clone"
        shutil.copytree(ROOT, clone, ignore=LEFT_OUT)
        for name, content in files(text).items():
            (clone / name).write_text(content, encoding="utf-8")
        env = {k: v for k, v in os.environ.items() if k in {"HOME", "LANG", "TMPDIR", "PIP_INDEX_URL", "SSL_CERT_FILE"}}
        for command in commands(text):
            subprocess.run(["bash", "-euc", command], cwd=clone, env={**env, "PATH": os.defpath + ":/usr/local/bin"}, check=True)


def main(names: list[str]) -> int:
    failed = 0
    for page in [Path(name).resolve() for name in names] or STARTS:
        began = time.monotonic()
        try:
            run(page)
            said = "passed"
        except subprocess.CalledProcessError as exc:
            failed, said = failed + 1, f"FAILED: {exc.cmd[-1]}"
        print(f"{page.relative_to(ROOT)}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
