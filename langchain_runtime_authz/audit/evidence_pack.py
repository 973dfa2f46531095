"""Write and verify evidence packs: a log, its policy, and digests in an archive."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

from langchain_runtime_authz.audit.chain import ChainReport, log_files, verify_files, verify_or_raise
from langchain_runtime_authz.errors import AuditError, Code

_MANIFEST: Final = "manifest.json"
_LOG: Final = "audit.jsonl"  # name of the log in a pack; its closed segments have a suffix
_MAX_MANIFEST: Final = 1 << 20


def write_pack(
    output: Path, log: Path, texts: Mapping[str, bytes | str], policy: Mapping[str, Any]
) -> tuple[ChainReport, str]:
    """Write a log with other files. Return its report and the manifest's digest.

    `texts`: the other files by name. `policy`: what the manifest says of the policy.
    """
    chain = verify_or_raise(log)
    output.touch(0o600)  # as private as a log
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in log_files(log):
            archive.write(part, _LOG + (part.suffix if part != log else ""))
        for name, content in texts.items():
            archive.writestr(name, content)
        files = {name: _digest(archive.open(name)) for name in archive.namelist()}
        about = {
            "version": 1,
            "made_by": f"langchain-runtime-authz {version('langchain-runtime-authz')}",
            "policy": policy,
        }
        told = {**about, "log": {"records": chain.records, "head": chain.head}, "files": files}
        manifest = json.dumps(told, indent=2).encode()
        archive.writestr(_MANIFEST, manifest)
    return chain, hashlib.sha256(manifest).hexdigest()


def verify_pack(path: Path, head: str | None = None) -> tuple[ChainReport, str]:
    """Verify an evidence pack. Return its log's report and its manifest's digest."""
    try:
        with zipfile.ZipFile(path) as archive:
            if {one.compress_type for one in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise _differs(path, "its files are compressed in another way than `audit pack` does")
            with archive.open(_MANIFEST) as file:
                raw = file.read(_MAX_MANIFEST)
            manifest = json.loads(raw)
            files, log = dict(manifest["files"]), dict(manifest["log"])
            if sorted([*files, _MANIFEST]) != sorted(archive.namelist()):
                raise _differs(path, "the files in it are not those of its manifest")
            for name, digest in files.items():
                if _digest(archive.open(name)) != digest:
                    raise _differs(path, f"{name} is not what its manifest says")
            parts = sorted(name for name in files if name.startswith(f"{_LOG}."))
            chain = verify_files([(part, partial(archive.open, part)) for part in (*parts, _LOG)], head)
            same = (chain.records, chain.head) == (log["records"], log["head"])
            if not same and (chain.ok or chain.code != Code.CHAIN_BROKEN):
                raise _differs(path, "the log is not the one that its manifest names")
            return chain, hashlib.sha256(raw).hexdigest()
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, RuntimeError) as exc:
        raise _differs(path, "it is not an evidence pack that can be read") from exc


def _differs(path: Path, why: str) -> AuditError:
    return AuditError(Code.CHAIN_BROKEN, f"{path.name}: {why}")


def _digest(file: IO[bytes]) -> str:
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
