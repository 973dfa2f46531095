"""Terms of approvals joined: an approver must satisfy both."""

from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.pep.obligations import QuestionTerms

PEOPLE = ("user:a", "user:b", "user:c")
people = st.lists(st.sampled_from(PEOPLE), unique=True).map(tuple)
limits = st.none() | st.integers(0, 3)
terms = st.builds(QuestionTerms, st.integers(0, 3), st.integers(1, 3), st.booleans(), people, people, st.integers(1, 3), limits, limits)


def may(of: QuestionTerms, who: str, after: int) -> bool:
    """May somebody answer, so many seconds after the question?"""
    return not of.eligible or who in of.eligible or (after >= of.fallback_after and who in of.fallback)


@given(terms, terms, st.sampled_from(PEOPLE), st.integers(0, 4))
@settings(deadline=None)
def test_the_joined_terms_are_both(a: QuestionTerms, b: QuestionTerms, who: str, after: int) -> None:
    """Who may answer at once may under each alone; once all fallbacks are due, exactly these."""
    both = a.strictest(b)
    apart = may(a, who, after) and may(b, who, after)
    assert not may(both, who, after) or apart
    if after >= max(a.fallback_after, b.fallback_after):
        assert may(both, who, after) == apart


@given(terms, terms)
def test_no_joined_term_is_looser(a: QuestionTerms, b: QuestionTerms) -> None:
    """The most people, the shortest expiry, the fewest questions, in either order."""
    both, other = a.strictest(b), b.strictest(a)
    assert both.needed == max(a.needed, b.needed)
    assert both.distinct == (a.distinct or b.distinct)
    assert both.expires_in == min((t.expires_in for t in (a, b) if t.expires_in), default=0)
    for name in ("per_run", "per_hour"):
        assert getattr(both, name) == min((v for t in (a, b) if (v := getattr(t, name)) is not None), default=None)
    assert both[:3] == other[:3]
    assert set(both.eligible) == set(other.eligible)
    assert a.strictest(a)[:4] == a[:4]
