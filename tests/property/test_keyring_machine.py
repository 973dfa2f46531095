"""A key ring through any history: what must always hold of the keys, and of the tokens that they signed."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from langchain_runtime_authz.credential.issuer import LocalIssuer
from langchain_runtime_authz.credential.jwks import usable_keys
from langchain_runtime_authz.credential.keyring import KeyRing
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import ConfigError, CredentialError
from tests.unit_tests.credential.tokens import BANK, a_request

CACHE_AGE = 30


class Ring(RuleBasedStateMachine):
    """Time passes, an operator rotates and withdraws, calls get tokens, and a verifier keeps old key sets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_764_000_000.0
        self.ring = KeyRing(cache_age=CACHE_AGE, clock=lambda: self.now)
        self.issuer = LocalIssuer(self.ring)
        self.own = Verifier(issuer=self.issuer.issuer, jwks=self.ring)
        self.copy, self.copied = self.ring.jwks(), self.now
        self.cached = Verifier(issuer=self.issuer.issuer, jwks=lambda: self.copy)
        self.tokens: list[tuple[str, str, float]] = []
        self.withdrawn: dict[str, float] = {}

    @rule(seconds=st.sampled_from([0.5, 5, 29, 30, 61, 119, 120]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._refresh()

    @rule()
    def refresh(self) -> None:
        self.copy, self.copied = self.ring.jwks(), self.now

    def _refresh(self) -> None:
        if self.now - self.copied >= CACHE_AGE:
            self.refresh()

    @rule()
    def rotate(self) -> None:
        upcoming = next(i for i in self.ring.all_keys() if i.state == "next")
        before = self.ring.all_keys()
        try:
            assert self.ring.rotate().kid == upcoming.kid
        except ConfigError:
            assert self.now < upcoming.since + CACHE_AGE and self.ring.all_keys() == before

    @rule(data=st.data())
    def compromise(self, data: st.DataObject) -> None:
        kid = data.draw(st.sampled_from([i.kid for i in self.ring.all_keys()]))
        done = self.ring.compromise(kid)
        assert done.active != kid
        self.withdrawn.setdefault(kid, done.refused_by)

    @rule()
    def issue(self) -> None:
        at = int(self.now)
        token = self.issuer.issue(a_request(issued_at=at, expires_at=at + 60))
        self.tokens.append((token, self.ring.active.kid, self.now))
        del self.tokens[:-12]

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        """A token that lives is served everywhere unless its key was withdrawn; then nowhere, in time."""
        token, kid, _ = data.draw(st.sampled_from(self.tokens))
        for verifier, fresh in ((self.own, True), (self.cached, False)):
            try:
                expires = verifier.verify(token, audience=BANK, now=int(self.now)).expires_at
            except CredentialError as exc:
                if kid not in self.withdrawn:
                    # INVARIANT: no valid call is refused, but the newest key right after a withdrawal.
                    skipped = not fresh and self.withdrawn and exc.code == "credential_key"
                    assert exc.code == "credential_expired" or self._is_old(token) or skipped
            else:
                assert self.now < expires + 5
                if kid in self.withdrawn:
                    # INVARIANT: no withdrawn key is believed after the moment that was told.
                    assert not fresh and self.now < self.withdrawn[kid]

    def _is_old(self, token: str) -> bool:
        return next(self.now - at for t, _, at in self.tokens if t == token) >= 60

    @invariant()
    def one_signs_and_one_will(self) -> None:
        states = [i.state for i in self.ring.all_keys()]
        assert states.count("active") == states.count("next") == 1
        assert states[0] == "active"
        assert len({i.kid for i in self.ring.all_keys()}) == len(states)

    @invariant()
    def what_is_published(self) -> None:
        published = usable_keys(self.ring.jwks())
        assert published is not None and self.ring.active.kid in published
        assert not set(self.withdrawn) & set(published)
        for kid in self.withdrawn:
            assert self.ring.get(kid) is None


Ring.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestRing = Ring.TestCase
