"""A Keycloak of this machine, for tests: in memory, with a realm, an agent's clients, two services and a user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx

from langchain_runtime_authz.credential.signer import SigningKey
from tests.threads import until

from .services import answers, free_port

REALM, AGENT_API, USER, PASSWORD = "bank", "https://agent.example", "alice", "a password of a test"
SECRETS = {name: f"the secret of {name}" for name in ("agent", "strict", "crm", "admin-api", "cron")}


class Keycloak:
    """Starts it, and makes the realm by its administration interface. `KEY` authenticates the client `own-key`."""

    def __init__(self, logout_url: str = "") -> None:
        home = Path(os.environ.get("LRA_KEYCLOAK", ""))
        assert (home / "bin/kc.sh").is_file(), 'no Keycloak: `eval "$(.ci/identity)"` fetches it and sets LRA_KEYCLOAK'
        self._home, self._logout, self.port = home, logout_url, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.issuer = f"{self.url}/realms/{REALM}"
        self.token_url, self.introspection_url = (f"{self.issuer}/protocol/openid-connect/{at}" for at in ("token", "token/introspect"))
        self.key = SigningKey.generate()
        self.http = httpx.Client(timeout=60, trust_env=False)
        self._admin: dict[str, str] = {}

    def __enter__(self) -> Keycloak:
        self.log = tempfile.NamedTemporaryFile(prefix="keycloak", suffix=".log")
        own = {"KC_BOOTSTRAP_ADMIN_USERNAME": "admin", "KC_BOOTSTRAP_ADMIN_PASSWORD": "admin", "JAVA_OPTS_APPEND": "-Xmx512m", "KC_HTTP_MANAGEMENT_PORT": str(free_port())}
        command = [self._home / "bin/kc.sh", "start", "--optimized", "--http-enabled=true", "--hostname-strict=false", "--http-host=127.0.0.1", f"--http-port={self.port}"]
        self._process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env={**os.environ, **own}, start_new_session=True)
        try:
            until(self._up, 400, lambda: "Keycloak did not start")
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self.http.close()

    def _up(self) -> bool:
        assert self._process.poll() is None, Path(self.log.name).read_text()[-2000:]
        return answers(f"{self.url}/realms/master")

    def _make(self) -> None:
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": "admin"}
        got = self.http.post(f"{self.url}/realms/master/protocol/openid-connect/token", data=form)
        got.raise_for_status()
        self._admin = {"Authorization": f"Bearer {got.json()['access_token']}"}
        self._post("", {"realm": REALM, "enabled": True, "sslRequired": "none", "accessTokenLifespan": 120})
        scope = self._post("/client-scopes", {
            "name": "crm.read", "protocol": "openid-connect", "attributes": {"include.in.token.scope": "true"},
            "protocolMappers": [_audience("included.client.audience", "crm")],
        })  # fmt: skip
        here = [_audience("included.custom.audience", AGENT_API)]
        exchanges = {"standard.token.exchange.enabled": "true", "backchannel.logout.url": self._logout, "backchannel.logout.session.required": "true"}
        for name, attributes in (("agent", exchanges), ("strict", {**exchanges, "access.token.header.type.rfc9068": "true"})):
            client = self._client(name, attributes=attributes, directAccessGrantsEnabled=True, protocolMappers=here)
            self._put(f"/clients/{client}/optional-client-scopes/{scope}")
        self._client("crm")
        self._client("admin-api")
        self._client("cron", serviceAccountsEnabled=True, protocolMappers=here)
        own_key = {**exchanges, "use.jwks.string": "true", "jwks.string": json.dumps(self.key.jwks()), "token.endpoint.auth.signing.alg": "ES256"}
        own = self._client("own-key", attributes=own_key, clientAuthenticatorType="client-jwt", directAccessGrantsEnabled=True)
        self._put(f"/clients/{own}/optional-client-scopes/{scope}")
        self.user = self._post("/users", {
            "username": USER, "enabled": True, "email": "alice@bank.example", "emailVerified": True, "firstName": "A", "lastName": "B",
            "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
        })  # fmt: skip

    def _client(self, name: str, **options: Any) -> str:
        own = {"clientId": name, "secret": SECRETS.get(name), "publicClient": False, "standardFlowEnabled": False, **options}
        return self._post("/clients", {k: v for k, v in own.items() if v is not None})

    def _post(self, path: str, body: dict[str, Any]) -> str:
        got = self.http.post(f"{self.url}/admin/realms{f'/{REALM}' if path else ''}{path}", json=body, headers=self._admin)
        assert got.status_code == 201, (path, got.status_code, got.text)
        return got.headers.get("location", "").rsplit("/", 1)[-1]

    def _put(self, path: str) -> None:
        assert self.http.put(f"{self.url}/admin/realms/{REALM}{path}", headers=self._admin).status_code == 204

    def sign_in(self, client: str = "agent", scope: str = "openid") -> dict[str, Any]:
        """Sign the user in, in the place of a browser; return access, ID and refresh token."""
        return self.tokens(client, grant_type="password", username=USER, password=PASSWORD, scope=scope)

    def sign_in_by_assertion(self, assertion: str, client: str = "own-key") -> str:
        """Sign the user in at a client that has a key and no secret; return the access token."""
        form = {
            "grant_type": "password", "username": USER, "password": PASSWORD, "client_id": client, "client_assertion": assertion,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        }  # fmt: skip
        got = self.http.post(self.token_url, data=form)
        assert got.status_code == 200, got.text
        return str(got.json()["access_token"])

    def tokens(self, client: str, **form: str) -> dict[str, Any]:
        got = self.http.post(self.token_url, data=form, auth=(client, SECRETS[client]))
        assert got.status_code == 200, got.text
        return got.json()  # type: ignore[no-any-return]

    def sign_out(self, refresh_token: str, client: str = "agent") -> int:
        """End the user's session; Keycloak tells each client of it."""
        form = {"refresh_token": refresh_token, "client_id": client, "client_secret": SECRETS[client]}
        return self.http.post(f"{self.issuer}/protocol/openid-connect/logout", data=form).status_code

    def rotate_keys(self) -> None:
        """Add a signing key of a higher priority: tokens are signed with it from now on."""
        realm = self.http.get(f"{self.url}/admin/realms/{REALM}", headers=self._admin).json()["id"]
        self._post("/components", {
            "name": "newer", "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider", "parentId": realm,
            "config": {"priority": ["200"], "enabled": ["true"], "active": ["true"], "algorithm": ["RS256"], "keySize": ["2048"]},
        })  # fmt: skip


def _audience(kind: str, audience: str) -> dict[str, Any]:
    config = {kind: audience, "access.token.claim": "true", "id.token.claim": "false"}
    return {"name": f"audience {audience}", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper", "config": config}
