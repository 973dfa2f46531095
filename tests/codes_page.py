"""Write `docs/codes.md`, the page of all reason codes: `python -m tests.codes_page`."""

from pathlib import Path

from langchain_runtime_authz.errors import RETRY, Code

PAGE = Path(__file__).parents[1] / "docs" / "codes.md"
HEAD = """# Reason codes

Made by [`codes_page.py`](../tests/codes_page.py) from [`errors.py`](../langchain_runtime_authz/errors.py). A code is
stable: search for it in logs, records and spans. `runtime-authz codes CODE` prints one. A policy may give codes of its own.
"""
TABLE = """
## {}

| code | means | most frequent cause | do | retry |
|---|---|---|---|---|
"""
GROUPS = {  # the first code of a group → its title
    Code.UNCANONICAL_ARGUMENT: "The step cannot be put into a request",
    Code.PDP_ERROR: "The engine gave no usable answer",
    Code.NO_RUN: "Refused by the enforcement point",
    Code.NO_PERMIT: "Given by the shipped policy",
    Code.CREDENTIAL_UNAVAILABLE: "Credentials, identity, configuration",
}


def page() -> str:
    """Return the page: a table for each group of codes."""
    text = HEAD
    for code in Code:
        text += TABLE.format(GROUPS[code]) if code in GROUPS else ""
        cells = (f'<a id="{code}"></a>`{code}`', code.meaning, code.cause, code.remedy, RETRY[code.retry])
        text += f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
