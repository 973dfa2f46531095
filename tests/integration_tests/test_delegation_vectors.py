"""A peer's delegation vectors: attenu-guard's set for draft-asor-wimse-agent-delegation-chain-02.

There a chain is a list of signed tokens; here it is one token, whose grant is the meet of all grants on the way. So each of their
tokens becomes a grant, and the last one also a token. A wildcard stands for itself and for the names below it in the chain.
"""

import base64
import json
from typing import Any, Final

import pytest
from attenu_guard.vectors import load_vectors_02
from pydantic import ValidationError

from langchain_runtime_authz.credential.issuer import LOCAL, claims_of
from langchain_runtime_authz.credential.jws import sign_compact
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import TYP
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.grant import Grant
from tests.unit_tests.credential.tokens import a_request

VECTORS: Final = load_vectors_02()
KEY: Final = SigningKey.generate()
ALGORITHMS: Final = {"HS256": "ES256", "EdDSA": "EdDSA"}  # theirs is a shared secret, which nobody may sign with here
BOUNDS: Final = {"max": "le", "min": "ge"}

ONE_TOKEN: Final = "one token holds the whole chain, so no other one can be put in place of a parent"
SYNTAX: Final = "their grammar of scopes and constraints, which a grant does not have"
UNMAPPED: Final = {
    "reject_altered_sub_and_par_hash.json": ONE_TOKEN,
    "reject_principal_altered.json": ONE_TOKEN,
    "reject_reissued_parent.json": ONE_TOKEN,
    "reject_second_detail.json": "several details are permitted here: the grant is the meet of all",
    "reject_unknown_detail_type.json": "a detail of an unknown type gives no authority here (RFC 9396), and is ignored",
    "reject_missing_cnf.json": "a token may be bound to a key here, and need not be",
    "reject_unsafe_integer.json": "an integer is exact here, however large",
    "reject_duplicate_key_type.json": SYNTAX,
    "reject_mixed_case_wildcard.json": SYNTAX,
    "reject_newline_scope.json": SYNTAX,
    "reject_rank_order_mismatch.json": SYNTAX,
    "reject_rank_outside_order.json": SYNTAX,
    "reject_rank_without_order.json": SYNTAX,
    "reject_wildcard_over_opaque.json": SYNTAX,
    "valid_audience_array.json": "a token is for exactly one audience here; a list is refused",
    "valid_unknown_constraint_identical.json": "a grant with an unknown member is refused here",
}


def claims(token: str) -> dict[str, Any]:
    """The claims of a token, unverified: what a signature covers is not ours to judge here."""
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def grant(token: dict[str, Any], names: set[str]) -> Grant:
    """Say what the peer's token permits. Cumulative bounds are counters; others limit an argument of each tool."""
    (detail,) = token["authorization_details"]
    below = tuple(scope.removesuffix("*") for scope in detail["scopes"] if scope.endswith(".*"))
    tools = {name for name in names if name in detail["scopes"] or name.startswith(below)}
    limits: dict[str, dict[str, Any]] = {}
    budgets = {}
    for constraint in detail["constraints"]:
        key, rest = constraint["key"], {k: v for k, v in constraint.items() if k != "key"}
        if total := {"max_lifetime", "max_subtree"} & set(rest):
            budgets[f"{min(total)} {key}"] = rest[min(total)]
        elif "order" in rest:
            limits.setdefault(key, {})["one_of"] = rest["order"][: rest["order"].index(rest["rank"]) + 1]
        else:
            limits.setdefault(key, {}).update({BOUNDS.get(name, name): value for name, value in rest.items()})
    known = {"type", "scopes", "constraints"}
    return Grant.model_validate(
        {
            "tools": sorted(tools), "args": dict.fromkeys(sorted(names), limits), "budgets": budgets, "expires_at": token["exp"],
            "max_depth": token.get("del_max_depth"), **{name: value for name, value in detail.items() if name not in known},
        }
    )


def is_accepted(vector: dict[str, Any]) -> bool:
    """Whether this package takes the chain as it stands: nothing in it widens, and a service believes the last token."""
    chain = [claims(token) for token in vector["tokens"]]
    names = {scope for token in chain for scope in token["authorization_details"][0]["scopes"]}
    try:
        grants = [grant(token, names) for token in chain]
    except ValidationError:
        return False
    held = grants[0]
    for own in grants[1:]:
        asked = (
            own if own.max_depth is not None else own.meet(Grant(max_depth=held.max_depth))
        )  # one that says none has its parent's
        child = held.attenuate(asked)
        assert held.covers(child), "a child never gets more than its parent has"
        if child != asked:
            return False
        held = child
    leaf, now = chain[-1], vector["now"]
    ours = claims_of(a_request(issued_at=now, expires_at=now + 60, grant=held), LOCAL)
    ours |= {"sub": chain[0]["sub"], **{name: leaf.get(name) for name in ("aud", "client_id", "cnf")}}
    ours["act"] = {"iss": LOCAL, "sub": leaf.get("client_id")}
    algorithms = [ALGORITHMS[alg] for alg in vector["verifier"]["accepted_algs"]]
    verifier = Verifier(issuer=LOCAL, jwks=KEY.jwks(), algorithms=algorithms)
    try:
        given = verifier.verify(sign_compact(TYP, ours, KEY), audience=vector["verifier"]["audience"], now=now, bound=True).grant
    except CredentialError:
        return False
    met = {tool: {k: c.le if c.one_of is None else c.one_of[0] for k, c in named.items()} for tool, named in given.args.items()}
    step = {"data_class": "internal", "sink": "none", "depth": leaf["del_depth"], "now": now}
    return not any(given.refuses(tool=tool, args=met.get(tool, {}), **step) for tool in given.tools or ())


@pytest.mark.parametrize("name", [name for name in VECTORS if name not in UNMAPPED])
def test_a_chain_is_accepted_or_rejected_as_they_say(name: str) -> None:
    """A chain that widens is not what its child gets, and one that cannot be believed is refused."""
    assert is_accepted(VECTORS[name]) == (VECTORS[name].get("expect") == "accept")


def test_each_vector_is_mapped_or_named_with_a_reason() -> None:
    """Of 35 vectors 16 ask what this package cannot express or decides otherwise."""
    assert set(UNMAPPED) <= set(VECTORS) and (len(VECTORS), len(UNMAPPED)) == (35, 16)
