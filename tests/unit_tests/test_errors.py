"""Codes are stable and speak to operators; what a model may read is neutral."""

import re
import traceback
from importlib import resources

from langchain_runtime_authz import errors
from langchain_runtime_authz.errors import (
    RETRY,
    AlreadyProtected,
    AuditError,
    AuthzDenied,
    AuthzError,
    Code,
    ConfigError,
    CredentialError,
    LedgerError,
    MappingError,
    PDPError,
    sentence,
)
from tests import codes_page
from tests.cli import cli

# A code is never renamed and never taken away: dashboards and runbooks search for it. New ones are added here.
PINNED = {
    "already_protected", "anonymous", "approval_malformed", "approval_rejected", "approval_unavailable",
    "approval_void", "audience", "audit_unavailable", "budget_exhausted", "call_in_progress", "chain_broken",
    "config", "credential_invalid", "credential_revoked", "credential_unavailable", "data_flow", "effect",
    "grant_argument", "grant_data_class", "grant_depth", "grant_exceeded", "grant_expired", "grant_sink",
    "grant_tool", "invalid_arguments", "lease_ended", "lease_expired", "lease_invalid", "ledger_clock",
    "ledger_rolled_back", "ledger_schema", "ledger_timeout", "ledger_unavailable",
    "no_permit", "no_run", "outcome_unknown", "pdp_error", "pdp_malformed", "pdp_timeout", "plan_changed",
    "policy_invalid", "profile_invalid", "rate_exceeded", "request_too_large", "revoked", "stale_epoch", "stale_plan",
    "subject_mismatch", "uncanonical_argument", "unknown_action", "unknown_obligation", "unknown_tool", "unplanned",
    "unprofiled", "unrepeatable_arguments", "pdp_unreachable", "pdp_tls", "pdp_redirect", "pdp_unauthorized",
    "pdp_status", "pdp_protocol", "pdp_too_large", "pdp_undefined", "pdp_circuit_open",
    "credential_expired", "credential_not_yet_valid", "credential_tenant", "credential_subject", "credential_key", "credential_tool",
    "credential_missing", "keys_unavailable", "status_unavailable", "proof_missing", "proof_invalid", "proof_replayed",
    "proof_nonce", "proof_limit", "exchange_refused", "exchange_failed", "no_call",
}  # fmt: skip


def test_no_code_was_renamed_or_taken_away() -> None:
    """The pinned codes are all there."""
    assert {str(code) for code in Code} >= PINNED


def test_every_code_has_a_sentence() -> None:
    """Its own, in one line, without a full stop: it stands in longer texts. First what happened, then what to do."""
    for code in Code:
        text = sentence(code)
        assert text.count("; ") == 1 and not re.search(r"can not|human|whoever|beside|is no |; look", text)
        assert text == sentence(str(code)) == f"{code.meaning}; {code.remedy}"
        assert "the policy gave the reason" not in text and text.strip() == text
        assert "\n" not in text and not text.endswith(".")
    assert len({*map(sentence, Code)}) == len(Code)


def test_every_code_has_a_cause_and_says_whether_to_retry() -> None:
    """A plain cause, another text than the meaning; and one of the answers to whether to retry."""
    for code in Code:
        assert code.cause == code.cause.strip(" .") and len(code.cause.split()) > 2
        assert code.cause != code.meaning and code.retry in RETRY


def test_every_code_is_in_the_page() -> None:
    """`python -m tests.codes_page` renews it; one code can be asked for."""
    assert codes_page.PAGE.read_text(encoding="utf-8") == codes_page.page()
    assert {*map(str, Code)} <= {*cli("codes").output.splitlines()}
    one = cli("codes", "pdp_timeout")
    assert one.exit_code == 0 and Code.PDP_TIMEOUT.cause in one.output
    assert cli("codes", "pdp_timeot").exit_code == 2


def test_codes_are_unique_and_plain() -> None:
    """snake_case, named after themselves, and short enough for a metric label."""
    for name, code in Code.__members__.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code) and name == code.upper()
        assert len(code) <= 32
    assert len(set(map(str, Code.__members__.values()))) == len(Code.__members__)


def test_the_shipped_policy_gives_known_codes() -> None:
    """Every code that its rules can give has a sentence for the operator."""
    rego = resources.files("langchain_runtime_authz").joinpath("policies/rego/runtime_authz.rego").read_text()
    given = set(re.findall(r'(?:denied|asked) contains "([^"]+)"', rego)) | set(re.findall(r'"code": "([^"]+)"', rego))
    assert "grant_tool" in given
    assert given <= {str(code) for code in Code}


def test_a_foreign_code_speaks_for_itself() -> None:
    """A policy may give codes of its own."""
    assert sentence("four_eyes") == "the policy gave the reason `four_eyes`"
    assert sentence("") == "the policy gave the reason ``"


def test_an_error_says_code_detail_and_what_to_do() -> None:
    """In this order, with the code as an attribute."""
    plain, detailed = AuthzError(Code.NO_RUN), AuthzError("four_eyes", "tool `pay`")
    assert str(plain) == f"no_run: {sentence(Code.NO_RUN)}"
    assert str(detailed) == "four_eyes: tool `pay`: the policy gave the reason `four_eyes`"
    assert (plain.code, detailed.code) == ("no_run", "four_eyes") and type(plain.code) is str
    assert str(ConfigError("`zone` is unknown")) == "config: `zone` is unknown"  # that a setting is wrong is said


def test_a_denial_tells_a_model_nothing() -> None:
    """Neither code nor reason stands in its text, its arguments or its representation."""
    for code in (*Code, "four_eyes"):
        denied = AuthzDenied(code, "d-1")
        shown = "".join(traceback.format_exception_only(denied))
        assert f"{code}: {sentence(code)}" in shown, "a developer's traceback says why"
        assert str(denied) == "not permitted (decision d-1)"
        for text in (str(denied), repr(denied), str(denied.args)):
            assert str(code) not in text and sentence(code) not in text
        assert (denied.code, denied.decision_id) == (str(code), "d-1")


def test_the_tree_of_exceptions() -> None:
    """One base for all of them; and a denial is no configuration error."""
    tree = {
        AuthzError: Exception, ConfigError: AuthzError, AlreadyProtected: ConfigError, MappingError: AuthzError,
        CredentialError: AuthzError, PDPError: AuthzError, AuditError: AuthzError, LedgerError: AuthzError,
        AuthzDenied: AuthzError,
    }
    for error, base in tree.items():
        assert error.__bases__ == (base,)
    own = [e for e in vars(errors).values() if isinstance(e, type) and e.__module__ == errors.__name__]
    assert {e for e in own if issubclass(e, Exception)} == set(tree)
