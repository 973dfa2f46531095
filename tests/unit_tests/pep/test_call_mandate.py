"""What the enforcement point tells the mandate of calls and their outputs."""

from __future__ import annotations

from langchain_runtime_authz import Mandate, RuntimeAuthz, ToolProfile
from langchain_runtime_authz.mandate.model import Field, Step

PROFILES = {
    "create_event": ToolProfile(effect="write", sink="internal", critical={"title": "name"}, trust="system"),
    "invite": ToolProfile(effect="send", sink="internal", critical={"event": "object", "who": "principal"}),
}
ORDER = Mandate(
    steps=(
        Step("made", "create_event", {"title": "Lunch"}),
        Step("asked", "invite", {"event": Field("made", "id"), "who": "bob@x.org"}, after="made"),
    )
)


def test_a_step_takes_a_value_from_what_a_side_effect_returned() -> None:
    """A system's own id of what the task created is good for the next step; what the model wrote is not."""
    for returned, outcome in (({"id": "e-7"}, "permit"), ({"id": "Lunch"}, "approval_required")):
        session = RuntimeAuthz(profiles=PROFILES).session(subject="alice", mandate=ORDER)
        assert session.decide("invite", {"event": returned["id"], "who": "bob@x.org"}).outcome == "approval_required"
        assert session.decide("create_event", {"title": "Lunch"}).permit
        session.observe("create_event", {"title": "Lunch"}, returned)
        assert session.decide("invite", {"event": returned["id"], "who": "bob@x.org"}).outcome == outcome
