"""Put a log and what decided it into one archive, and verify it on another machine.

An archive holds files and `manifest.json`, which has the SHA-256 of each, the log's number of records and its head.
Keep the manifest's digest, or the head, somewhere else: somebody who can rewrite the archive can rewrite its manifest.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from langchain_runtime_authz.audit.chain import ChainReport, log_files, verified, verify_files
from langchain_runtime_authz.errors import AuditError, Code

MANIFEST: Final = "manifest.json"
LOG: Final = "audit.jsonl"
MAX_MANIFEST: Final = 1 << 20
_UNREADABLE: Final = (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, NotImplementedError, RuntimeError)


def write_pack(path: Path, log: Path, texts: Mapping[str, bytes], about: Mapping[str, Any]) -> tuple[ChainReport, str]:
    """Write an archive of a verified log and `texts` (name → content); return the log's chain and the manifest's digest.

    `about` goes into the manifest.
    """
    chain = verified(log)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in log_files(log):
            archive.write(part, LOG + part.name.removeprefix(log.name))
        for name, content in texts.items():
            archive.writestr(name, content)
        files = {name: _digest(archive.open(name)) for name in archive.namelist()}
        told = {"version": 1, **about, "log": {"records": chain.records, "head": chain.head}, "files": files}
        manifest = json.dumps(told, indent=2).encode()
        archive.writestr(MANIFEST, manifest)
    return chain, hashlib.sha256(manifest).hexdigest()


def verify_pack(path: Path, head: str | None = None) -> tuple[ChainReport, str]:
    """Verify each file of an archive, then the log's chain; return that and the manifest's digest."""
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open(MANIFEST) as file:
                raw = file.read(MAX_MANIFEST)
            manifest = json.loads(raw)
            files, log = dict(manifest["files"]), dict(manifest["log"])
            if sorted([*files, MANIFEST]) != sorted(archive.namelist()):
                raise _differs(path, "the files in it are not those of its manifest")
            for name, digest in files.items():
                if _digest(archive.open(name)) != digest:
                    raise _differs(path, f"{name} is not what its manifest says")
            parts = sorted(name for name in files if name.startswith(f"{LOG}."))
            chain = verify_files([(part, partial(archive.open, part)) for part in (*parts, LOG)], head)
            if chain.ok and (chain.records, chain.head) != (log["records"], log["head"]):
                raise _differs(path, "the log is not the one that its manifest names")
            return chain, hashlib.sha256(raw).hexdigest()
    except _UNREADABLE as exc:
        raise _differs(path, "it is not an evidence pack that can be read") from exc


def _differs(path: Path, why: str) -> AuditError:
    return AuditError(Code.CHAIN_BROKEN, f"{path.name}: {why}")


def _digest(file: IO[bytes]) -> str:
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
