"""What two workloads see under a real SPIRE. Collected if the binaries are at hand (`.ci/identity`)."""

from __future__ import annotations

from .spire_rounds import play


def test_two_workloads_under_spire() -> None:
    seen = play(8.0)
    assert seen["workloads"] == ["spiffe://bank.example/agent/payer", "spiffe://bank.example/agent/reader"]
    assert seen["agent in the token"].startswith("spiffe://bank.example/agent/payer#")
    assert (seen["denied in it"], seen["runs in it"], seen["tokens that outlive their SVID"]) == (0, 1, 0)
    assert seen["SVIDs in it"] >= 2
    assert seen["verified by the other workload"] == seen["workloads"][0]
    assert seen["for another audience"] == "identity_invalid"
    assert seen["a step while the agent is down"] == "permit"
    assert seen["no entry for the process"][0] == "workload_unproven"
    assert "PERMISSION_DENIED" in seen["no entry for the process"][1]
    for name in ("agent down: denied after the SVID's end", "entry deleted: denied", "registered as another workload"):
        assert seen[name][0] == "workload_unproven"
    assert seen["reader, all the while"] == "permit"
