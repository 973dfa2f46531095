"""The published call tokens, checked by a service in JavaScript: `jose` and what docs/credentials.md says."""

import json
import os
import subprocess
from pathlib import Path

from tests.token_vectors import PATH

SCRIPT = Path(__file__).parent / "check_call_token.mjs"


def test_another_language_comes_to_the_published_verdicts() -> None:
    """`jose` accepts and refuses each token as this package does, for the same reason."""
    assert os.environ.get("LRA_JOSE"), "no jose: `.ci/services` installs it"
    command = ["node", str(SCRIPT), str(PATH)]
    answered = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    vectors = json.loads(PATH.read_text(encoding="utf-8"))["vectors"]
    assert json.loads(answered) == {v["name"]: v["verdict"] for v in vectors}
