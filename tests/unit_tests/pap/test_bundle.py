"""A bundle is read whole and verified, or not at all."""

import gzip
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_runtime_authz.errors import Code, ConfigError
from langchain_runtime_authz.evaluation import deny
from langchain_runtime_authz.grant import Grant
from langchain_runtime_authz.pap.bundle import Case, pack, parse_bundle, read_bundle, read_files, sign
from langchain_runtime_authz.testing.example_request import example_request
from langchain_runtime_authz.tool_profile import ToolProfile
from tests.bundles import Key, files, put

KEY, OTHER = Key(), Key()
Files = dict[str, bytes]


def case(expect: str = "permit", **more: object) -> dict[str, object]:
    return {"name": "c", "request": json.loads(example_request().to_json()), "expect": expect, **more}


def refused(made: Files, keys: dict[str, bytes] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_bundle(made, "b", keys)
    return caught.value


def test_everything_is_in_it(tmp_path: Path) -> None:
    """Policy, data, profiles, grants and cases."""
    made = files(
        7, {"redact": {"t": ["iban"]}}, key=KEY, profiles={"t": {"effect": "read"}}, grants={"g": {"tools": ["t"]}},
        cases=[case(reasons=[])],
    )  # fmt: skip
    packed = read_bundle(put(tmp_path / "b.tar.gz", made), {"default": KEY.public})
    assert (packed.number, packed.signed_by) == (7, "default") and packed.revision.startswith("7@")
    assert packed.profiles == {"t": ToolProfile(effect="read")} and packed.grants == {"g": Grant(tools=("t",))}
    assert packed.cases == (Case("c", example_request(), "permit", ()),)
    assert packed.data["runtime_authz_data"]["redact"] == {"t": ["iban"]}


def test_the_manifest_names_the_rule_that_answers() -> None:
    """Otherwise it is the shipped policy's."""
    assert parse_bundle(files(2, entrypoint="mine/answer"), "b", None).entrypoint == "mine/answer"
    assert parse_bundle(files(2), "b", None).entrypoint == "runtime_authz/decision"


def test_the_same_files_give_the_same_bytes() -> None:
    assert pack(files(1)) == pack(dict(reversed(files(1).items())))


def unsigned(made: Files) -> Files:
    return {n: c for n, c in made.items() if n != ".signatures.json"}


def signatures(*tokens: str) -> bytes:
    return json.dumps({"signatures": list(tokens)}).encode()


FORGED: dict[str, Callable[[Files], Files]] = {
    "no signature": unsigned,
    "by another": lambda m: files(2, key=OTHER),
    "of another revision": lambda m: {**files(3), ".signatures.json": m[".signatures.json"]},
    "data changed": lambda m: {**m, "data.json": m["data.json"].replace(b'"max": 20', b'"max": 21')},
    "policy changed": lambda m: {**m, "policy.wasm": m["policy.wasm"] + b"\0"},
    "manifest changed": lambda m: {**m, ".manifest": m[".manifest"].replace(b'"2"', b'"9"')},
    "deep data": lambda m: {**m, "data.json": b'{"a":' * 500 + b"1" + b"}" * 500},
    "half a character": lambda m: {**m, "data.json": b'{"a": "\\ud800"}'},
    "a file more": lambda m: {**m, "more.rego": b"package more"},
    "a file fewer": lambda m: {n: c for n, c in m.items() if n != "policy.wasm"},
    "not JSON": lambda m: {**m, ".signatures.json": b"{"},
    "two of them": lambda m: {**m, ".signatures.json": signatures(*json.loads(m[".signatures.json"])["signatures"] * 2)},
    "none": lambda m: {**m, ".signatures.json": signatures(jwt.encode({"files": []}, "", "none", {"kid": "default"}))},
    "HMAC with the public key's bytes": lambda m: {
        **m, ".signatures.json": signatures(hmac_signed(KEY.public)),
    },
    "no file list": lambda m: {
        **m, ".signatures.json": signatures(jwt.encode({}, KEY.private, "ES256", {"kid": "default"})),
    },
}  # fmt: skip


def hmac_signed(secret: bytes) -> str:
    import base64
    import hashlib
    import hmac
    part = lambda value: base64.urlsafe_b64encode(value).rstrip(b"=").decode()
    head = part(b'{"alg":"HS256","kid":"default"}') + "." + part(b'{"files":[]}')
    return head + "." + part(hmac.new(secret, head.encode(), hashlib.sha256).digest())


@pytest.mark.parametrize("name", FORGED)
def test_what_the_key_did_not_sign_is_refused(name: str) -> None:
    """Under keys nothing but the signed files is read; the same files are fine where they were signed."""
    made = files(2, key=KEY)
    keys = {"default": KEY.public}
    assert parse_bundle(made, "b", keys).number == 2
    assert refused(FORGED[name](made), keys).code == Code.POLICY_UNSIGNED


def test_layout_is_not_what_is_signed() -> None:
    """OPA signs what JSON says: an archive whose data is laid out otherwise still verifies."""
    made = files(2, key=KEY)
    laid = json.dumps(json.loads(made["data.json"]), indent=2, sort_keys=True).encode()
    assert parse_bundle({**made, "data.json": laid}, "b", {"default": KEY.public}).number == 2


BROKEN: dict[str, Callable[[Files], Files]] = {
    "no manifest": lambda m: {n: c for n, c in m.items() if n != ".manifest"},
    "no policy": lambda m: {n: c for n, c in m.items() if n != "policy.wasm"},
    "manifest is no JSON": lambda m: {**m, ".manifest": b"["},
    "manifest is a list": lambda m: {**m, ".manifest": b"[]"},
    "metadata is a list": lambda m: {**m, ".manifest": b'{"metadata": []}'},
    "entrypoint is a number": lambda m: files(2, entrypoint=3),
    "profile": lambda m: files(2, profiles={"t": {"effect": "fly"}}),
    "profiles": lambda m: files(2, profiles=[]),
    "grant": lambda m: files(2, grants={"g": {"tols": []}}),
    "case": lambda m: files(2, cases=[{"request": {}, "expect": "deny"}]),
    "case expects": lambda m: files(2, cases=[case("allow")]),
    "case has more": lambda m: files(2, cases=[case(expected="x")]),
    "case reasons": lambda m: files(2, cases=[case(reasons="x")]),
    "case is text": lambda m: files(2, cases=["x"]),
    **{f"revision {n!r}": (lambda m, n=n: files(n)) for n in (0, -1, "v1", "", "1.5", "9" * 16, "٣")},
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_bundle_is_refused(name: str) -> None:
    assert refused(BROKEN[name](files(2))).code in (Code.POLICY_INVALID, Code.PROFILE_INVALID)


def test_a_bomb_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(pack({"data.json": bytes(33 * 1024 * 1024)}))
    for source in (tmp_path / "b.tar.gz", tmp_path / "none.tar.gz"):
        with pytest.raises(ConfigError, match=Code.POLICY_INVALID):
            read_bundle(source)


@pytest.mark.parametrize("link", ["/etc/passwd", "../secret", "absent", ".", "..", "/"])
def test_no_link_leads_out_of_a_bundle(tmp_path: Path, link: str) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
            entry = tarfile.TarInfo("data.json")
            entry.type, entry.linkname = kind, link
            tar.addfile(entry)
        with pytest.raises(ConfigError, match="not a plain file"):
            read_files(tmp_path / "b.tar.gz")


def test_what_is_no_bundle_costs_no_wait(tmp_path: Path) -> None:
    """A directory, a pipe, a device."""
    os.mkfifo(tmp_path / "pipe")
    for source in (Path("/"), tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="policy build"):
            read_files(source)


def _member(kind: bytes, size: bytes) -> bytes:
    """A tar header as somebody writes it who wants to be unpacked."""
    head = bytearray(512)
    for at, field in (
        (0, b"data.json"), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"), (124, size), (136, b"0" * 11 + b"\0"),
        (148, b" " * 8), (156, kind), (257, b"ustar  \0"), (386, b"0" * 11 + b"\0"), (398, b"0" * 11 + b"\0"),
        (483, b"\x80" + (20 << 30).to_bytes(11, "big")),
    ):  # fmt: skip
        head[at : at + len(field)] = field
    head[148:156] = b"%06o\0 " % sum(head)
    return gzip.compress(bytes(head) + bytes(1024), mtime=0)


SIZES = [b"0" * 11 + b"\0", b"\x80" + (20 << 30).to_bytes(11, "big"), b"\x80" + b"\xff" * 11, b"\xff" * 12]


@pytest.mark.parametrize("content", [
    b"", b"plain", b"\x1f\x8b", pack(files(1))[:2000], pack(files(1))[:-1], pack(files(1))[:2000] + pack(files(2))[2000:], pack({"../x": b"", "y": b""}),
    *(_member(kind, size) for kind in (b"S", b"0") for size in SIZES),
])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    """Also a size of twenty gigabytes, beyond any number or below zero: before anything is read or verified."""
    (tmp_path / "b.tar.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=Code.POLICY_INVALID):
        read_bundle(tmp_path / "b.tar.gz")


@given(st.integers(0, 4000), st.integers(1, 255))
def test_no_flipped_bit_is_signed(at: int, flip: int) -> None:
    """Whatever byte of the signed data is changed: refused, unless it says the same."""
    made = files(2, key=KEY)
    data = bytearray(made["data.json"])
    data[at % len(data)] ^= flip
    try:
        same = json.loads(bytes(data)) == json.loads(made["data.json"])
    except ValueError:
        same = False
    if not same:
        assert refused({**made, "data.json": bytes(data)}, {"default": KEY.public}).code == Code.POLICY_UNSIGNED


def test_a_case_tells_how_it_differs() -> None:
    wanted = Case("c", example_request(), "deny", ("effect",))
    assert wanted.unlike(deny("effect")) == "" and "stale_plan" in wanted.unlike(deny("stale_plan"))
    assert wanted.unlike(None)


def test_only_asymmetric_algorithms_sign() -> None:
    for key, algorithm in ((b"secret", "HS256"), (KEY.private, "RS256"), (KEY.public, "ES256"), (b"x", "ES256")):
        with pytest.raises(ConfigError):
            sign(files(1), key, algorithm)
    with pytest.raises(ConfigError, match="not a private key in PEM form for ES256"):
        sign(files(1), KEY.public, "ES256")
