"""The examples of the RFCs: signatures that are right are right, and what is not ours is refused."""

from typing import Any

import pytest

from langchain_runtime_authz._http import basic_auth
from langchain_runtime_authz.credential.authorization_details import disclosure_digest
from langchain_runtime_authz.credential.jwks import usable_keys
from langchain_runtime_authz.credential.jws import Jws, is_signed, public_key
from langchain_runtime_authz.credential.signer import SigningKey
from langchain_runtime_authz.credential.verifier import Verifier
from langchain_runtime_authz.errors import CredentialError

JOE = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"

VECTORS: dict[str, tuple[str, dict[str, str], str]] = {
    "RFC 7515 A.2": (
        "RS256",
        {
            "kty": "RSA",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yR"
            "T-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo"
            "7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91"
            "kzk2PAcDTW9gb54h4FRWyuXpoQ",
            "e": "AQAB",
        },
        f"eyJhbGciOiJSUzI1NiJ9.{JOE}."
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CU"
        "Ar7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_d"
        "O--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0ig"
        "cN_IoypGlUPQGe77Rw",
    ),
    "RFC 7515 A.3": (
        "ES256",
        {
            "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        },
        f"eyJhbGciOiJFUzI1NiJ9.{JOE}."
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
    "RFC 8037 A.4": (
        "EdDSA", {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    ),
}


def taken_apart(token: str) -> Jws:
    from jwt.utils import base64url_decode

    signing_input, _, signature = token.rpartition(".")
    return Jws({}, {}, signing_input.encode(), base64url_decode(signature))


@pytest.mark.parametrize("name", VECTORS)
def test_the_rfcs_signatures_are_right(name: str) -> None:
    """RFC 7515 appendix A.2 and A.3, RFC 8037 appendix A.4; and wrong with any other input or key."""
    alg, jwk, token = VECTORS[name]
    key = public_key(jwk, alg)
    assert key is not None
    jws = taken_apart(token)
    assert is_signed(jws, key) and not is_signed(jws._replace(signing_input=jws.signing_input + b"x"), key)
    assert not is_signed(jws._replace(signature=jws.signature[:-1]), key)
    assert not is_signed(jws._replace(signature=b""), key)
    for other in VECTORS:
        if other != name:
            assert not is_signed(taken_apart(VECTORS[other][2]), key)
            assert public_key(jwk, VECTORS[other][0]) is None


FOREIGN = {
    **{name: token for name, (_, _, token) in VECTORS.items()},
    "RFC 7515 A.1 and 7519 3.1, HS256": f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{JOE}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    "RFC 7515 A.5 and 7519 6.1, none": f"eyJhbGciOiJub25lIn0.{JOE}.",
    "RFC 7515 A.6, JSON serialisation": '{"payload":"' + JOE + '","signatures":[]}',
    "RFC 7516 A.1, encrypted": "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKo"
    ".48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A"
    ".XFBoMYUZodetZdvTiFvSkQ",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_ours_is_refused(name: str) -> None:
    """However right its signature: another `typ`, algorithm or serialisation is none of our tokens."""
    keys = [{**jwk, "kid": "k", "alg": alg} for alg, jwk, _ in VECTORS.values()]
    for jwk in keys:
        verifier = Verifier(issuer="joe", jwks={"keys": [jwk]})
        with pytest.raises(CredentialError, match="credential_invalid: "):
            verifier.verify(FOREIGN[name], audience="x", now=1300819380)


def test_the_rfcs_key_set_holds_one_key_for_us() -> None:
    """RFC 7517 appendix A.1: its EC key is for encryption; appendix A.2's private keys and A.3's are none."""
    ec: dict[str, Any] = {
        "kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM", "use": "enc", "kid": "1",
    }  # fmt: skip
    rsa = {**VECTORS["RFC 7515 A.2"][1], "alg": "RS256", "kid": "2011-04-29"}
    found = usable_keys({"keys": [ec, rsa]})
    assert found is not None and set(found) == {"2011-04-29"}
    private = {**ec, "d": "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"}
    symmetric = {"kty": "oct", "alg": "A128KW", "k": "GawgguFyGrWKav7AX4VKUg", "kid": "s"}
    assert usable_keys({"keys": [private, symmetric]}) == {}


def test_a_client_authenticates_as_the_rfc_says() -> None:
    """RFC 6749 §2.3.1 gives the header of `s6BhdRkqt3`."""
    assert basic_auth("s6BhdRkqt3", "7Fjfp0ZBr1KtDRbnfVdmIw") == "Basic czZCaGRSa3F0Mzo3RmpmcDBaQnIxS3REUmJuZlZkbUl3"


def test_our_own_keys_are_public_keys_of_the_rfcs() -> None:
    """What `SigningKey` publishes is what RFC 7518 §6 and RFC 8037 §2 describe."""
    for alg, members in (("ES256", "crv kty x y"), ("EdDSA", "crv kty x"), ("RS256", "e kty n")):
        jwk = SigningKey.generate(alg).public_jwk()  # type: ignore[arg-type]
        assert set(jwk) == {*members.split(), "kid", "alg", "use"} and public_key(jwk, alg) is not None


def test_a_disclosure_has_the_rfcs_digest() -> None:
    """RFC 9901 §4.2.3 gives the one of a family name."""
    disclosure = '["_26bc4LT-ac6q2KI6cBW5es", "family_name", "Möbius"]'
    assert disclosure_digest(disclosure.encode()) == "X9yH0Ajrdm1Oij4tWso9UzzKJvPoDxwmuEcO3XAdRC0"
