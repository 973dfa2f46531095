"""`runtime-authz audit pack`: put a log and what decided it into one file that another machine verifies."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from langchain_runtime_authz.cli._errors import Json, reporting, show
from langchain_runtime_authz.cli.audit import POLICIES, controls_document
from langchain_runtime_authz.cli.story import LOG, Log


def pack(
    log: Log = LOG,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The archive.")] = Path("evidence.zip"),
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="PATH", help="The policy that decided; default: the shipped one.")
    ] = None,
    opa: Annotated[str | None, typer.Option("--opa", metavar="FILE", help="The OPA that compiles Rego.")] = None,
    as_json: Json = False,
) -> None:
    """Write an evidence pack: the log, its head, the policy with its data, the controls, and the digest of each.

    Keep the printed head or manifest digest somewhere else: both can be rewritten inside the archive.

    \b
    Examples:
      runtime-authz audit pack -o evidence.zip
      runtime-authz audit verify evidence.zip --head "$(cat pinned-head)"
    """  # noqa: D301  (`\b` keeps the lines apart)
    from langchain_runtime_authz import __version__
    from langchain_runtime_authz.audit.chain import read_log
    from langchain_runtime_authz.audit.evidence import write_pack
    from langchain_runtime_authz.cli.policy.project import open_policy

    with reporting():
        source = open_policy(policy, opa)
        with closing(source.pdp()) as engine:
            revision = engine.revision
        seen = Counter(str(r["policy_revision"]) for r in read_log(log) if r and r.get("policy_revision"))
        texts = {f"policy/{Path(name).name}": text.encode() for name, text in source.rego.items()}
        texts["policy/data.json"] = json.dumps(source.data, indent=2).encode()
        texts["controls.json"] = json.dumps(controls_document(), indent=2).encode()
        if source.wasm is not None:
            texts["policy/policy.wasm"] = source.wasm
        else:  # what `data.json` changes
            texts["policy/shipped_data.json"] = (POLICIES / "data.json").read_bytes()
        named = {"name": source.name, "revision": revision, "revisions_in_log": dict(seen)}
        about = {"made_by": f"langchain-runtime-authz {__version__}", "policy": named}
        chain, manifest = write_pack(output, log, texts, about)
    found = {"records": chain.records, "head": chain.head, "policy": revision, "manifest": manifest}
    other = sorted(seen.keys() - {revision})
    note = f"other policies decided too: {', '.join(other)}" if other else None
    show(
        {**found, "other": other, "wrote": str(output)} if as_json else {**found, "note": note, "wrote": output},
        as_json,
    )
