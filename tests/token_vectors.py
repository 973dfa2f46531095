"""Call tokens, good and bad, for services in other languages: `python -m tests.token_vectors` writes `PATH`.

Keys, clock and salts are fixed and the signatures deterministic (RFC 6979, RFC 8032), so that the file is always the same.
"""

import copy
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from langchain_runtime_authz.credential.authorization_details import ORDERED, authorization_details, check_call
from langchain_runtime_authz.credential.issuer import claims_of
from langchain_runtime_authz.credential.jws import sign_compact
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.token import TYP, TaskClaim, TokenRequest
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import CredentialError
from langchain_runtime_authz.evaluation import Subject
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.unit_tests.credential.tokens import b64

PATH: Final = Path(__file__).parents[1] / "docs" / "vectors" / "call-tokens.json"
ABOUT: Final = (
    "Call tokens of langchain-runtime-authz. A service that checks `token` as docs/credentials.md says, with the keys in "
    "`jwks` and the demands in `check`, comes to `verdict`: `accepted`, or the code of the refusal. Times are epoch seconds."
)
ISSUER, BANK, NOW = "https://agents.example", "https://bank.example", 1_800_000_000
AGENT: Final = "urn:langchain-runtime-authz:agent:supervisor"
PAYMENT: Final = {"recipient": "DE21500105170123456789", "amount": 98.7, "note": "December"}
PAYS: Final = ToolProfile(effect="pay", critical={"recipient": "principal", "amount": "amount"}, when=("on",), text=("note",))
READS: Final = ToolProfile(critical={"account": "object", "range": "object"}, token="plain")
Claims = dict[str, Any]


class _P256(SigningKey):
    """A key that signs the same text the same way."""

    def sign(self, signing_input: bytes) -> bytes:
        """Return r‖s of a deterministic signature (RFC 6979)."""
        der = self._private.sign(signing_input, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        return b"".join(part.to_bytes(32, "big") for part in decode_dss_signature(der))


def _secret(name: str) -> bytes:
    return hashlib.sha256(f"token vectors: {name}".encode()).digest()


KEY: Final = _P256(ec.derive_private_key(int.from_bytes(_secret("P-256")), ec.SECP256R1()))
NEW: Final = SigningKey(Ed25519PrivateKey.from_private_bytes(_secret("Ed25519")))
OTHER: Final = SigningKey(Ed25519PrivateKey.from_private_bytes(_secret("of nobody")))
JWKS: Final = {"keys": [KEY.public_jwk(), NEW.public_jwk()]}
CHECK: Final[Claims] = {
    "issuer": ISSUER, "audience": BANK, "tenant": "acme", "now": NOW + 10, "tool": "send_money",
    "args": {"recipient": PAYMENT["recipient"], "amount": 98.7}, "step": None, "accept": list(ORDERED),
}


def _claims(args: Mapping[str, Any] = PAYMENT, profile: ToolProfile = PAYS, tool: str = "send_money", **said: Any) -> Claims:
    facts = {"step": "pay", "standing": "covered", "source": "words", "mandate": "sha256:01", "salt": "Vnl0a2Vu", **said}
    request = TokenRequest(
        subject=Subject(type="user", id="alice"), tenant="acme", agent=f"{AGENT}/payer", delegators=(AGENT,), audience=BANK,
        txn="run-1", task=TaskClaim(id="task-1", epoch=2, digest="sha256:00", mandate="sha256:01"), tool=tool,
        details=tuple(authorization_details(profile, tool, args, **facts)), grant=Grant(tools=(tool,)), jti="token-1",
        issued_at=NOW, expires_at=NOW + 60,
    )
    return json.loads(json.dumps(claims_of(request, ISSUER)))


def _with(change: Callable[[Claims], object]) -> Claims:
    claims = copy.deepcopy(_claims())
    change(claims)
    return claims


def _signed(claims: Mapping[str, Any], key: SigningKey = KEY, **header: Any) -> str:
    head = {"typ": TYP, "alg": key.alg, "kid": key.kid, **header}
    signing_input = f"{b64(json.dumps(head))}.{b64(json.dumps(claims))}"
    return f"{signing_input}.{b64(key.sign(signing_input.encode()))}"


def _respelt(token: str) -> str:
    """Return a token whose last character has other spare bits: the same bytes, another text."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


def _good() -> Iterator[tuple[Any, ...]]:
    """Yield name, token and what differs in `CHECK`; of all these the check passes, if its demands do."""
    token = sign_compact(TYP, _claims(), KEY)
    yield "ES256", token
    yield "EdDSA", sign_compact(TYP, _claims(), NEW)
    yield "one second before the leeway ends", token, {"now": NOW + 64}
    yield "five seconds before it was issued", token, {"now": NOW - 5}
    yield "one argument of several", token, {"args": {"amount": 98.7}}
    yield "a text for a number", token, {"args": {"amount": "98.70"}}
    yield "a comma in a text for a number", token, {"args": {"amount": "98,7"}}
    yield "a plus sign in a text for a number", token, {"args": {"amount": "+98.7"}}
    yield "digits of another script in a text for a number", token, {"args": {"amount": "\u0669\u0668.\u0667"}}
    yield "an exponent in a text for a number", token, {"args": {"amount": "9.87e1"}}
    yield "blanks around a text", token, {"args": {"recipient": " DE21500105170123456789 "}}
    for held, shown in (("+00:00", "Z"), ("Z", "+00:00"), ("+00:00", "+01:00")):
        timed = _signed(_claims({**PAYMENT, "on": f"2026-12-05T10:00:00{held}"}))
        yield f"a time that ends in {shown} for {held}", timed, {"args": {"on": f"2026-12-05T10:00:00{shown}"}}
    yield "an argument that was not given", token, {"args": {"on": None}}
    yield "the step that is demanded", token, {"step": "pay"}
    yield "an unknown claim", _signed(_with(lambda c: c.update(extra={"a": 1})))
    deviates = _claims(step=None, standing="deviates", approved=True)
    yield "an approved deviation", _signed(deviates)
    yield "an approved deviation where covered is demanded", _signed(deviates), {"accept": ["covered"]}
    outside = _signed(_claims(step=None, standing="outside"))
    yield "outside the mandate", outside
    yield "outside the mandate where any standing is accepted", outside, {"accept": None}
    read = {"account": "acct-7 ", "range": {"to": 9, "from": [1, 2.5, "ä"], "\U0001f600": None}}
    reads = _signed(_claims(read, READS, "read_account"))
    same = {"range": {"from": [1, 2.50, "ä"], "\U0001f600": None, "to": 9.0}}
    yield "values in the token", reads, {"tool": "read_account", "args": {"account": "acct-7"}}
    yield "an object whose members have another order", reads, {"tool": "read_account", "args": same}
    yield "another object", reads, {"tool": "read_account", "args": {"range": {"to": 9}}}
    many = {f"argument {n}": n for n in range(90)}
    large = _signed(_claims({**PAYMENT, **many}))
    yield ("one digest over all arguments", large, {"args": {"recipient": PAYMENT["recipient"], "amount": "98.7", **many}})
    yield "one digest over all arguments, of which one is missing", large
    yield "another step than demanded", token, {"step": "refund"}
    yield "another tool", token, {"tool": "close_account"}
    yield "another amount", token, {"args": {"amount": 987}}
    yield "another recipient", token, {"args": {"recipient": "DE89370400440532013000"}}
    yield "an argument that the token does not hold", token, {"args": {"amount": 98.7, "urgent": True}}
    yield "an argument with the name of a built-in member", token, {"args": {"constructor": "x"}}
    yield "an argument said not to be given", token, {"args": {"recipient": None}}
    yield "a boolean for a number", _signed(_claims({**PAYMENT, "amount": 1})), {"args": {"amount": True}}


def _bad() -> Iterator[tuple[Any, ...]]:
    """Yield name, token and what differs in `CHECK`, and the key set if it does: no token is to be believed."""
    token = sign_compact(TYP, _claims(), KEY)
    head, body, signature = token.split(".")
    yield "expired", token, {"now": NOW + 65}
    yield "issued in the future", token, {"now": NOW - 6}
    yield "not yet valid", _signed(_with(lambda c: c.update(nbf=NOW + 50)))
    yield "living too long", _signed(_with(lambda c: c.update(exp=NOW + 600)))
    yield "expiring before it was issued", _signed(_with(lambda c: c.update(exp=NOW - 1))), {"now": NOW}
    yield "without an expiry", _signed(_with(lambda c: c.pop("exp")))
    yield "an expiry in a text", _signed(_with(lambda c: c.update(exp=str(NOW + 60))))
    yield "for another audience", token, {"audience": "https://mail.example"}
    yield "for several audiences", _signed(_with(lambda c: c.update(aud=[BANK, "https://mail.example"])))
    yield "of another issuer", token, {"issuer": "https://others.example"}
    yield "of another tenant", token, {"tenant": "umbrella"}
    for name in ("sub", "sub_type", "jti", "txn", "client_id", "tenant", "act", "task", "authorization_details"):
        yield f"without `{name}`", _signed(_with(lambda c, name=name: c.pop(name)))
    yield "an actor who is not the client", _signed(_with(lambda c: c.update(client_id=AGENT)))
    yield "a task without an epoch", _signed(_with(lambda c: c["task"].pop("epoch")))
    yield "no details", _signed(_with(lambda c: c.update(authorization_details=[])))
    yield "two calls", _signed(_with(lambda c: c["authorization_details"].append(c["authorization_details"][1])))
    yield "no call", _signed(_with(lambda c: c["authorization_details"].pop()))
    yield "an agent to invoke", _signed(_with(lambda c: c["authorization_details"][0].update(actions=["agent/invoke"])))
    raised = _with(lambda c: c["authorization_details"][1].update(standing="covered", approved=True))
    yield "claims that were changed", f"{head}.{b64(json.dumps(raised))}.{signature}"
    yield "signed by another key of that name", _signed(_claims(), OTHER, kid=NEW.kid)
    yield "signed by an unknown key", _signed(_claims(), OTHER)
    yield "a withdrawn key", token, {}, {"keys": [NEW.public_jwk()]}
    yield "two keys of one name", token, {}, {"keys": [KEY.public_jwk(), KEY.public_jwk()]}
    yield "a key for encryption", token, {}, {"keys": [{**KEY.public_jwk(), "use": "enc"}]}
    yield "the algorithm of another key", _signed(_claims(), OTHER, kid=KEY.kid)
    yield "without a signature", f"{b64(json.dumps({'typ': TYP, 'alg': 'none', 'kid': KEY.kid}))}.{body}."
    symmetric = f"{b64(json.dumps({'typ': TYP, 'alg': 'HS256', 'kid': KEY.kid}))}.{body}"
    public = KEY._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    yield "the public key as a shared secret", f"{symmetric}.{b64(hmac.digest(public, symmetric.encode(), 'sha256'))}"
    yield "of another type", _signed(_claims(), typ="at+jwt")
    yield "a type in other letters", _signed(_claims(), typ=TYP.upper())
    yield "without a type", f"{b64(json.dumps({'alg': 'ES256', 'kid': KEY.kid}))}.{body}.{signature}"
    yield "a key in its header", _signed(_claims(), OTHER, kid=NEW.kid, jwk=OTHER.public_jwk())
    yield "a critical header", _signed(_claims(), crit=["b64"], b64=True)
    yield "a signature spelt in another way", _respelt(token)
    yield "an empty text", ""


def verdict(vector: Mapping[str, Any]) -> str:
    """Return the verdict of this package on a vector."""
    check = vector["check"]
    try:
        verifier = Verifier(issuer=check["issuer"], jwks=vector["jwks"], algorithms=("ES256", "EdDSA"))
        credential = verifier.verify(vector["token"], audience=check["audience"], tenant=check["tenant"], now=check["now"])
        check_call(credential, tool=check["tool"], args=check["args"], step=check["step"], accept=check["accept"])
    except CredentialError as exc:
        return str(exc.code)
    return "accepted"


def vectors() -> list[dict[str, Any]]:
    """Return all vectors, each with the verdict of this package."""
    made = []
    for name, token, *differs in (*_good(), *_bad()):
        check, jwks = (*differs, *[{}, JWKS][len(differs) :])
        vector = {"name": name, "token": token, "jwks": jwks, "check": {**CHECK, **check}}
        made.append({**vector, "verdict": verdict(vector)})
    return made


def text() -> str:
    """Return the file: one vector a line."""
    lines = ",\n".join(json.dumps(vector) for vector in vectors())
    return f'{{"about": {json.dumps(ABOUT)}, "vectors": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
