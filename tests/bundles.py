"""Bundles of the shipped policy, for tests of how policies change."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from langchain_runtime_authz.pdp.bundle import assemble, pack, sign

POLICIES = resources.files("langchain_runtime_authz") / "policies"
WASM = (POLICIES / "policy.wasm").read_bytes()
DATA = json.loads((POLICIES / "data.json").read_bytes())["runtime_authz_data"]


class Key:
    """A signing key and its public half, as PEM."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption(),
        )
        self.public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo,
        )


def files(
    number: int,
    data: Mapping[str, Any] | None = None,
    *,
    key: Key | None = None,
    wasm: bytes = WASM,
    **metadata: Any,
) -> dict[str, bytes]:
    """The files of a bundle of the shipped policy with these data keys replaced."""
    document = {"runtime_authz_data": {**DATA, **(data or {})}}
    made = assemble({"data.json": json.dumps(document).encode(), "policy.wasm": wasm}, number, metadata)
    if key is not None:
        made[".signatures.json"] = sign(made, key.private, "ES256")
    return made


def put(path: Path, made: Mapping[str, bytes]) -> Path:
    """Write a bundle in one step, as whoever delivers policies should."""
    new = path.with_suffix(".new")
    new.write_bytes(pack(made))
    os.replace(new, path)
    return path
