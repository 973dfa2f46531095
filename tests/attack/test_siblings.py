"""Confidential data carried out by an agent that never read it: through a shared note, an answer, a hand-over.

`vault` is confidential, `post` leaves the house, and the policy permits writing: what asks is the flow of data. Only agents that work side by side, of which none has
done anything that others can see, are judged apart.
"""

from langchain_runtime_authz.pep.session import Session

from ._kit import *

PROFILES: dict[str, Any] = {
    "vault": {"effect": "read", "sink": "none", "class": "confidential"},
    "pinboard": {"effect": "read", "sink": "none", "class": "public"},
    "note": {"effect": "write", "sink": "internal", "class": "public"},
    "post": {"effect": "write", "sink": "external", "class": "public"},
}
KEY = "k-4711"
WRITING: Any = {"effects": {"write": "permit"}}


class Office:
    """What the tools do, and what has left it."""

    def __init__(self) -> None:
        self.pinboard = ""
        self.outside: list[str] = []

    def call(self, agent: Session, tool: str, text: str = "") -> str | None:
        """The tool's output, or `None` where it was not permitted unasked."""
        args = {"text": text} if text else {}
        if not agent.decide(tool, args).permit:
            return None
        output = {"vault": KEY, "pinboard": self.pinboard}.get(tool, "done")
        if tool == "note":
            self.pinboard = text
        elif tool == "post":
            self.outside.append(text)
        agent.observe(tool, args, output)
        return output


def by_a_note(office: Office, root: Session) -> None:
    """A sibling at work beside it reads what the first one pinned up."""
    one, other = root.delegate("one"), root.delegate("other")
    office.call(one, "note", office.call(one, "vault") or "")
    office.call(other, "post", office.call(other, "pinboard") or "")


def by_its_answer(office: Office, root: Session) -> None:
    """The parent posts what its child answered."""
    one = root.delegate("one")
    answer = office.call(one, "vault")
    one.close()
    office.call(root, "post", answer or "")


def by_an_early_answer(office: Office, root: Session) -> None:
    """Likewise, while the child still works."""
    office.call(root, "post", office.call(root.delegate("one"), "vault") or "")


def by_a_hand_over(office: Office, root: Session) -> None:
    """The parent hands the child's answer to another one."""
    one = root.delegate("one")
    answer = office.call(one, "vault")
    one.close()
    office.call(root.delegate("other"), "post", answer or "")


def by_a_grandchild(office: Office, root: Session) -> None:
    """Two steps up and one down."""
    one = root.delegate("one")
    answer = office.call(one.delegate("inner"), "vault")
    office.call(root.delegate("other"), "post", answer or "")


def by_a_child_of_its_own(office: Office, root: Session) -> None:
    """Downwards: who read it tells a child of its own, which read nothing."""
    one = root.delegate("one")
    answer = office.call(one, "vault")
    office.call(one.delegate("inner"), "post", answer or "")


ROADS: tuple[Callable[[Office, Session], None], ...] = (
    by_a_note, by_its_answer, by_an_early_answer, by_a_hand_over, by_a_grandchild, by_a_child_of_its_own,
)  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
def test_confidential_data_leaves_by_no_other_agent(road: Callable[[Office, Session], None], protected: bool) -> None:
    """Whoever could have come to know it is asked about. The twin's policy permits everything."""
    office, pdp = Office(), WasmPDP(data=WRITING) if protected else StaticPDP(True)
    with RuntimeAuthz(profiles=PROFILES, pdp=pdp).session(subject="alice") as root:
        road(office, root)
    assert office.outside == ([] if protected else [KEY])


def test_who_works_beside_it_and_read_nothing_is_not_asked() -> None:
    """The point of telling them apart; the reader itself is asked about."""
    office = Office()
    with RuntimeAuthz(profiles=PROFILES, pdp=WasmPDP(data=WRITING)).session(subject="alice") as root:
        one, other = root.delegate("one"), root.delegate("other")
        office.call(one, "vault")
        office.call(other, "post", "hello")
        refused = one.decide("post", {"text": KEY})
    assert office.outside == ["hello"]
    assert (refused.outcome, refused.reasons) == ("approval_required", ("data_flow",))
