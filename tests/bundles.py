"""Bundles of the shipped policy, for tests of how policies change."""

import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from langchain_runtime_authz.pap.bundle import pack, sign, with_manifest

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
        self.public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def files(
    number: int, data: Mapping[str, Any] | None = None, *, key: Key | None = None, wasm: bytes = WASM, **metadata: Any
) -> dict[str, bytes]:
    """The files of a bundle of the shipped policy with these data keys replaced."""
    document = {"runtime_authz_data": {**DATA, **(data or {})}}
    made = with_manifest({"data.json": json.dumps(document).encode(), "policy.wasm": wasm}, number, metadata)
    if key is not None:
        made[".signatures.json"] = sign(made, key.private, "ES256")
    return made


def mount(path: Path, made: Mapping[str, bytes], name: str) -> Path:
    """Deliver a bundle as kubelet does a ConfigMap: a directory, reached through links, swapped by one rename."""
    path.mkdir(exist_ok=True)
    data = path / "..data"
    old = data.resolve() if data.is_symlink() else None
    real = path / f"..{name}"
    for file, content in made.items():
        (real / file).parent.mkdir(parents=True, exist_ok=True)
        (real / file).write_bytes(content)
    new = path / "..data_tmp"
    new.symlink_to(real.name)
    os.replace(new, data)
    for top in {file.partition("/")[0] for file in made}:
        if not (path / top).is_symlink():
            (path / top).symlink_to(f"..data/{top}")
    if old is not None:
        shutil.rmtree(old)
    return path


def put(path: Path, made: Mapping[str, bytes]) -> Path:
    """Write a bundle in one step, as whoever delivers policies should."""
    new = path.with_suffix(".new")
    new.write_bytes(pack(made))
    os.replace(new, path)
    return path


def policy_data(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entity that holds data for the shipped Cedar policies."""
    return {"uid": {"type": "Data", "id": "policy"}, "attrs": dict(attrs), "parents": []}
