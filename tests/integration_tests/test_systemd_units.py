"""The units in deploy/systemd, as systemd itself reads them."""

import re
import subprocess
from pathlib import Path


def test_the_systemd_units_verify(tmp_path: Path) -> None:
    """With programs that exist here in the place of those that they name."""
    units = [*Path("deploy/systemd").iterdir()]
    names = [str(tmp_path / unit.name) for unit in units]
    for unit in units:
        (tmp_path / unit.name).write_text(re.sub(r"/opt/runtime-authz/\S+", "/bin/true", unit.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True)
    assert (bool(names), done.returncode, done.stderr) == (True, 0, "")
