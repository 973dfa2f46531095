"""README: what it tells a stranger to type works, and what it quotes is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import langchain_runtime_authz
from langchain_runtime_authz.errors import Code, sentence
from langchain_runtime_authz.profile import load_profiles

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _section(heading: str) -> str:
    match = re.search(rf"^## {heading}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_first_block_is_one_line(heading: str) -> None:
    """The first thing to type under each heading is one line that starts from nothing."""
    first = _blocks("bash", _section(heading))[0]
    assert first.count("\n") == 1
    assert first.startswith("python3 -m venv .venv && ")
    assert "-c constraints.txt" in first


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_blocks(code: str) -> None:
    """Every Python block compiles, and takes from the package's root only what is public."""
    tree = ast.parse(code)
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "langchain_runtime_authz"
        for alias in node.names
    ]
    assert set(names) <= set(langchain_runtime_authz.__all__)


def test_yaml_blocks_are_profiles(tmp_path: Path) -> None:
    """The profiles that are shown load."""
    for text in _blocks("yaml"):
        (tmp_path / "profiles.yaml").write_text(text)
        assert set(load_profiles(tmp_path / "profiles.yaml")) == set(yaml.safe_load(text)["tools"])


def test_denial_codes_say_what_the_package_says() -> None:
    """Each code of the table exists and is explained in the words of `errors.py`."""
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \|$", README.split("### What a denial says")[1].split("## ")[0], re.MULTILINE,
    )
    assert rows
    assert [(str(Code(code)), sentence(code)) for code, _ in rows] == rows


def test_links_lead_somewhere() -> None:
    """Every relative link names a file of this repository."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_rule_and_the_boundary_are_said() -> None:
    """The rule of the package and the limit of what it can do stand in README in their own words."""
    said = " ".join(README.split())
    assert "If the workload can choose its next action, its token is not trusted to define that action." in said
    assert "In one process this stops a hijacked *model*, not hostile *code*." in said
