"""The scripts of `.ci` parse and name only modules that exist."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = [path for path in sorted(Path(".ci").iterdir()) if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_its_modules_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    named = set(re.findall(r"python(?:3)? (?:-W \w+ )?-m (tests[\w.]*|langchain_runtime_authz[\w.]*)", script.read_text()))
    assert not [module for module in named if find_spec(module) is None]
