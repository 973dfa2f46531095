"""What `deploy/` ships: the chart's values, the compose file and the systemd units."""

import copy
import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from fastapi.testclient import TestClient

from langchain_runtime_authz.credential.keyring import KeyDirectory

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "langchain-runtime-authz"
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
PINNED = dict(re.findall(r"^(\w+)_VERSION=v(\S+)", (ROOT / ".ci" / "services").read_text(), re.MULTILINE))


NAMED = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["web"]}
EVERYBODY = (
    {},
    *({"podSelector": {"matchExpressions": [{"key": "a", **rule}]}} for rule in ({"operator": "NotIn", "values": ["b"]}, {"operator": "DoesNotExist"})),
    {"namespaceSelector": {"matchLabels": {}, "matchExpressions": [{**NAMED, "operator": "NotIn"}]}},
    {"namespaceSelector": {"matchExpressions": [{"key": NAMED["key"], "operator": "Exists"}]}},
    *({kind: given} for kind in ("podSelector", "namespaceSelector") for given in ({}, {"matchLabels": {}}, {"matchExpressions": []})),
    *({"ipBlock": {"cidr": cidr}} for cidr in ("0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1")),
)


def values(path: str, value: Any) -> dict[str, Any]:
    """The chart's own values with one changed."""
    changed = node = copy.deepcopy(VALUES)
    *way, last = path.split(".")
    for step in way:
        node = node[step]
    node[last] = value
    return changed


@pytest.mark.parametrize(("path", "value"), [
    ("engine", {"kind": "wasm"}),
    ("engine", {"kind": "service", "url": "https://opa.policy:8443", "caSecret": "opa-ca"}),
    ("env", [{"name": "LANGSMITH_TRACING", "value": "false"}]),
    ("replicas", 1),
    *(("image.tag", tag) for tag in ("1.2.0-static", "v2", "1.2@sha256:ab", "a1b2c3d", "f" * 64)),
    ("networkPolicy.from", [{"namespaceSelector": {"matchExpressions": [NAMED, {"key": "a", "operator": "DoesNotExist"}]}}]),
    ("networkPolicy.from", [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]),
    ("networkPolicy.egress", [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"namespaceSelector": {"matchLabels": {"a": "b"}}}]}]),
])
def test_values_of_an_honest_deployment_are_accepted(path: str, value: Any) -> None:
    jsonschema.validate(VALUES, SCHEMA)
    jsonschema.validate(values(path, value), SCHEMA)


@pytest.mark.parametrize(("path", "value"), [
    ("audit.enabled", False), ("development", True), ("engine.kind", "none"),
    ("engine", {"kind": "service", "url": "http://opa.policy:8181"}), ("engine", {"kind": "service"}), ("ledger", {}),
    ("keys.secret", ""), ("killSwitch.configMap", ""), ("image.tag", "latest"), ("networkPolicy.from", []),
    *(("networkPolicy.from", [each]) for each in EVERYBODY), ("networkPolicy.egress", [{}]),
    *(("networkPolicy.egress", [{"to": [each]}]) for each in EVERYBODY), ("engine.tag", "edge"), ("port", 8181),
    ("audit.size", "0Gi"), ("audit.durable", False), ("env", [{"name": "AUTHZ_OPA", "value": "http://elsewhere"}]),
    *(("env", [{"name": name, "value": "/tmp/none"}]) for name in ("RUNTIME_AUTHZ_KILL_SWITCH", "LD_PRELOAD", "PYTHONPATH")),
    ("engine", {"kind": "wasm", "bundle": {"configMap": "authz-policy"}}),  # which it would not read
    ("image.tag", "latest-1"), ("env", [{"name": "PATH", "value": "/tmp"}]),
    *(("env", [{"name": name, "value": "http://elsewhere"}]) for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "All_Proxy")),
    ("unknown", 1),
])
def test_a_value_that_weakens_enforcement_is_refused(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values(path, value), SCHEMA)


def test_the_compose_file_names_the_versions_that_are_tested_and_opens_nothing() -> None:
    """Ports are this machine's only, and each volume and file that is named exists."""
    services = COMPOSE["services"]
    images = {name: service["image"] for name, service in services.items()}
    assert images["opa"] == f"openpolicyagent/opa:{PINNED['OPA']}-static"
    assert VALUES["engine"]["tag"] == f"{PINNED['OPA']}-static"
    jaeger = yaml.safe_load((ROOT / "examples" / "jaeger" / "compose.yaml").read_text())["services"]["jaeger"]["image"]
    assert images["jaeger"] == jaeger
    assert f"Jaeger {jaeger.rpartition(':')[2].removesuffix('.0')}\n" in (ROOT / ".ci" / "services").read_text()
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]+", image) for image in images.values())
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))
    for service in services.values():
        assert service.keys() <= {"image", "environment", "volumes", "ports", "healthcheck", "command", "read_only", "cap_drop", "security_opt"}
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith(".."):
                assert (ROOT / "deploy" / "compose" / source).is_file()
            else:
                assert source.startswith("./") or source in COMPOSE["volumes"]


def test_each_alert_names_its_page() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "alerts" / "runtime-authz.yml").read_text())["groups"]
    pages = {re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^## (.+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)}
    named = [rule["annotations"]["runbook"].partition("#") for group in groups for rule in group["rules"]]
    assert named
    assert all(file == "docs/runbooks.md" and anchor in pages for file, _, anchor in named)


def test_each_alert_counts_the_first_event_of_a_series() -> None:
    """A series begins with its first event, so its increase is unknown: the whole of a new one counts. A histogram's quantile is a ratio."""
    (group,) = yaml.safe_load((ROOT / "deploy" / "alerts" / "runtime-authz.yml").read_text())["groups"]
    counters = [rule["expr"] for rule in group["rules"] if "_total" in rule["expr"]]
    assert len(counters) > 5
    for expr in counters:
        whole = r"\((\S+) unless \1 offset (\w+)\) or increase\(\1\[\2\]\)"
        rest, found = re.subn(whole, "", expr)
        assert found and "_total" not in rest, expr
    others = [rule["expr"] for rule in group["rules"] if re.search(r"rate|increase", rule["expr"]) and rule["expr"] not in counters]
    assert all(re.fullmatch(r"histogram_quantile\(.*\) > [\d.]+", expr) for expr in others)


def test_the_application_is_configured_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the probes that the chart asks, and is not ready while the kill switch is engaged."""
    probes = set(re.findall(r"path: (/health/\w+)", (CHART / "templates" / "app.yaml").read_text()))
    named = set(re.findall(r"AUTHZ_[A-Z_]+", "".join(file.read_text() for file in [CHART / "templates" / "app.yaml", *UNITS])))
    served = (ROOT / "deploy" / "app" / "server.py").read_text()
    assert {name for name in named if name not in served} == {"AUTHZ_KILL_SWITCH"}  # RUNTIME_…, which the package reads
    KeyDirectory.create(tmp_path / "keys")
    (tmp_path / "run").mkdir()
    kill = tmp_path / "run" / "engaged"
    monkeypatch.setenv("AUTHZ_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("AUTHZ_AUDIT", str(tmp_path / "audit.jsonl"))
    monkeypatch.setenv("AUTHZ_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("RUNTIME_AUTHZ_KILL_SWITCH", str(kill))
    client = TestClient(runpy.run_path(str(ROOT / "deploy" / "app" / "server.py"))["application"]())
    ask = {"url": "/chat", "params": {"text": "Hello"}, "headers": {"x-user": "alice"}}
    assert [client.get(path).status_code for path in sorted(probes)] == [200, 200]
    assert client.post(**ask).json() == {"answer": "Good morning."}
    kill.touch()
    monkeypatch.setattr("langchain_runtime_authz.pep.health.FRESH", 0)
    assert [client.get("/health/live").status_code, client.get("/health/ready").status_code, client.post(**ask).status_code] == [200, 503, 403]


def test_a_backup_names_the_directory_that_is_missing(tmp_path: Path) -> None:
    """And not the ledger, which is well."""
    done = subprocess.run([ROOT / "deploy/app/backup", "ledger.db", tmp_path / "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == f"{tmp_path / 'none'}: not a directory\n"
