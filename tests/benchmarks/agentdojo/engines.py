"""The same decisions by two engines: what the Wasm engine was asked, an OPA server is asked as well."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from langchain_runtime_authz.evaluation import Decision, EvaluationRequest, parse_request
from langchain_runtime_authz.pdp.base import Evaluator
from langchain_runtime_authz.pdp.opa import OpaPDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from tests.integration_tests.services import SHIPPED, OpaServer

BATCH = 64  # requests of one question to the server
DEADLINE = 60.0


class TwoEngines:
    """A PDP that answers as the Wasm engine does, and keeps every question with its answer until `settle`."""

    name, deadline = "wasm", DEADLINE

    def __init__(self, data: Mapping[str, Any], url: str) -> None:
        self._wasm, self._opa = WasmPDP(data=data, timeout=DEADLINE), OpaPDP(url, timeout=DEADLINE)
        self._kept: list[tuple[EvaluationRequest, bytes, object]] = []

    @property
    def revision(self) -> str:
        """The Wasm engine's."""
        return self._wasm.revision

    def evaluate(self, body: bytes) -> object:
        """Answer one request."""
        answer = self._wasm.evaluate(body)
        self._kept.append((parse_request(body), body, answer))
        return answer

    async def aevaluate(self, body: bytes) -> object:
        """Answer one request."""
        return self.evaluate(body)

    def settle(self) -> tuple[int, list[str]]:
        """Ask the server what was asked since the last time: how many requests, and which answers differ."""
        kept, self._kept = self._kept, []
        differences = []
        server = Evaluator(self._opa, deadline=DEADLINE)
        for i in range(0, len(kept), BATCH):
            some = kept[i : i + BATCH]
            decisions = server.evaluate([b for _, b, _ in some])
            for (request, _, mine), theirs in zip(some, decisions, strict=True):
                if told(mine) != told(theirs):
                    differences.append(f"{request.action.name} {request.resource.id}: {told(mine)} / {told(theirs)}")
        return len(kept), differences


def told(decision: object) -> str:
    """All that a decision says, but for which engine said it and when. The members of an object have no order."""
    if not isinstance(decision, Decision):
        return repr(decision)
    said = asdict(replace(decision, decision_id="", pdp_decision_id="", policy_revision=""))
    return json.dumps(said, sort_keys=True)


@contextmanager
def servers(documents: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[dict[str, str]]:
    """An OPA server with the shipped policy for each different data document: name of the document → address."""
    with ExitStack() as running:
        by_text: dict[str, str] = {}
        addresses: dict[str, str] = {}
        for name, data in documents.items():
            text = json.dumps({"runtime_authz_data": data}, sort_keys=True)
            if text not in by_text:
                path = folder / f"data-{len(by_text)}.json"
                path.write_text(text)
                by_text[text] = running.enter_context(OpaServer(SHIPPED[0], path)).url
            addresses[name] = by_text[text]
        yield addresses


__all__: Sequence[str] = ["TwoEngines", "servers", "told"]
