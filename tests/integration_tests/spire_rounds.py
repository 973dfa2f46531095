"""Two workloads under a real SPIRE: rotation in one run, outages of the agent, wrong selectors, a lost entry.

`python -m tests.integration_tests.spire_rounds [SECONDS]` prints what was seen, and fails if it is not as it should be.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .spire import DOMAIN, Spire

TTL = 12  # seconds of an SVID; SPIRE renews it at half of them
PAYER, READER, STRANGER = 20_001, 20_002, 20_003  # group ids: what SPIRE's selectors look at
API = "https://agent.example"


class Process:
    """A workload in a process with a group id of its own."""

    def __init__(self, spire: Spire, group: int, wait: float = 20.0) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.integration_tests.spire_workload", spire.socket, str(wait)]
        self.errors = spire.home / f"{group}.err"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors.open("w"), text=True,
            group=group, extra_groups=[], env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )  # fmt: skip
        self.first = self._read()

    def ask(self, *command: str) -> dict[str, Any]:
        self.process.stdin.write(" ".join(command) + "\n")
        self.process.stdin.flush()
        return self._read()

    def until(self, command: str, seconds: float = 90.0, **wanted: Any) -> tuple[dict[str, Any], float]:
        """Ask again and again until the answer holds what is wanted; return it and the seconds it took."""
        began = time.monotonic()
        while True:
            answer = self.ask(command)
            if all(answer.get(k) == v for k, v in wanted.items()):
                return answer, time.monotonic() - began
            assert time.monotonic() - began < seconds, answer
            time.sleep(0.1)

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        return json.loads(line)  # type: ignore[no-any-return]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def play(seconds: float = 15.0) -> dict[str, Any]:
    """Every round; what was seen, by name."""
    seen: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="spire") as folder:
        home = Path(folder)
        home.chmod(0o755)
        began = time.monotonic()
        with Spire(home) as spire:
            seen["SPIRE ready (s)"] = time.monotonic() - began
            entry = spire.entry("/agent/payer", f"unix:gid:{PAYER}", ttl=TTL)
            spire.entry("/agent/reader", f"unix:gid:{READER}", ttl=TTL)
            processes: list[Process] = []
            try:
                began = time.monotonic()
                processes += [Process(spire, PAYER), Process(spire, READER), Process(spire, STRANGER, wait=1.0)]
                seen["three processes up, two proven (s)"] = time.monotonic() - began
                _rounds(spire, seen, *processes, entry=entry, seconds=seconds)
            finally:
                for process in processes:
                    process.end()
    return seen


def _rounds(spire: Spire, seen: dict[str, Any], payer: Process, reader: Process, stranger: Process, *, entry: str, seconds: float) -> None:
    seen["workloads"] = [payer.first["workload"], reader.first["workload"]]
    alone = stranger.ask("start")
    seen["no entry for the process"] = [alone["code"], stranger.ask("look")["why"]]

    first = payer.ask("start")
    steps = [first]
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        steps.append(payer.ask("step"))
        time.sleep(0.1)
    seen["steps of one run"] = len(steps)
    seen["denied in it"] = sum(step["outcome"] != "permit" for step in steps)
    seen["codes of denials"] = sorted({step["code"] for step in steps if step["outcome"] != "permit"})
    steps = [step for step in steps if step["outcome"] == "permit"]
    seen["runs in it"] = len({step["run_id"] for step in steps})
    seen["SVIDs in it"] = len({step["expires_at"] for step in steps})
    seen["tokens that outlive their SVID"] = sum(step["exp"] > max(step["expires_at"], step["now"] + 1) for step in steps)
    seen["agent in the token"] = first["act"]

    svid = payer.ask("svid", API)
    warm = [payer.ask("svid", API)["ms"] for _ in range(20)]
    seen["JWT-SVID fetched (ms, mean of 20)"] = sum(warm) / len(warm)
    seen["verified by the other workload"] = reader.ask("verify", API, svid["token"])["caller"]
    seen["for another audience"] = reader.ask("verify", "https://else.example", svid["token"])["code"]

    spire.stop("agent")
    seen["a step while the agent is down"] = payer.ask("step")["outcome"]
    denied, took = payer.until("step", outcome="deny")
    seen["agent down: denied after the SVID's end"] = [denied["code"], took]
    seen["a new run meanwhile"] = payer.ask("start")["code"]
    spire.start_agent()
    found, took = payer.until("start", outcome="permit")
    seen["agent back: permitted again (s)"] = took

    assert spire.server("entry", "delete", "-entryID", entry).returncode == 0
    denied, took = payer.until("step", outcome="deny")
    seen["entry deleted: denied"] = [denied["code"], took]
    spire.entry("/agent/other", f"unix:gid:{PAYER}", ttl=TTL)
    found, _ = payer.until("look", why="it is of another workload than before; start the process anew if that is meant")
    seen["registered as another workload"] = [payer.ask("step")["code"], found["why"]]
    spire.entry("/agent/reader", f"unix:gid:{STRANGER}", ttl=TTL)
    found, took = stranger.until("start", outcome="permit")
    seen["entry for the stranger: permitted (s)"] = took
    seen["reader, all the while"] = reader.ask("start")["outcome"]
    for words in ("Creating X509-SVID", "Renewing X509-SVID", "No identity issued"):
        lines = spire.log("agent", words)
        seen[f"agent's log, {words} ({len(lines)})"] = lines[-1] if lines else ""
    seen["workload's log"] = payer.errors.read_text().splitlines()[:8]


def check(seen: dict[str, Any]) -> None:
    assert seen["workloads"] == ["spiffe://bank.example/agent/payer", "spiffe://bank.example/agent/reader"]
    assert seen["agent in the token"].startswith("spiffe://bank.example/agent/payer#")
    assert (seen["denied in it"], seen["runs in it"], seen["tokens that outlive their SVID"]) == (0, 1, 0)
    assert seen["SVIDs in it"] >= 2 and seen["verified by the other workload"] == seen["workloads"][0]
    assert seen["for another audience"] == "identity_invalid"
    assert seen["a step while the agent is down"] == "permit"
    assert seen["no entry for the process"][0] == "workload_unproven"
    assert "PERMISSION_DENIED" in seen["no entry for the process"][1]
    for name in ("agent down: denied after the SVID's end", "entry deleted: denied", "registered as another workload"):
        assert seen[name][0] == "workload_unproven"
    assert seen["reader, all the while"] == "permit"


def main() -> None:
    seen = play(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0)
    for name, value in seen.items():
        print(f"{name:48} {round(value, 2) if isinstance(value, float) else value}")
    print(f"(trust domain {DOMAIN}, SVIDs of {TTL} s)")
    check(seen)


if __name__ == "__main__":
    main()
