"""The published call tokens: the file is what its script makes, and it says what this package decides."""

import json
from collections import Counter

from tests.token_vectors import PATH, text, verdict


def test_the_file_is_what_the_script_makes() -> None:
    """A change of the token changes the vectors: `python -m tests.token_vectors` writes them anew."""
    assert PATH.read_text(encoding="utf-8") == text()


def test_this_package_comes_to_the_published_verdicts() -> None:
    """Each vector once, good ones and each kind of refusal that needs no ledger."""
    vectors = json.loads(PATH.read_text(encoding="utf-8"))["vectors"]
    assert {v["name"]: verdict(v) for v in vectors} == {v["name"]: v["verdict"] for v in vectors}
    assert len({v["name"] for v in vectors}) == len(vectors)
    kinds = Counter(v["verdict"] for v in vectors)
    assert {code for code in kinds if code.startswith(("credential_", "audience"))} == {
        "audience", "credential_call", "credential_expired", "credential_invalid", "credential_key",
        "credential_not_yet_valid", "credential_tenant", "credential_tool",
    }
    assert kinds["accepted"] > 10
