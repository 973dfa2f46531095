"""The PDP contract, kept by the PDPs that need no service."""

import json
from importlib import resources

from langchain_runtime_authz.pdp.base import PDP
from langchain_runtime_authz.pdp.cedar import CedarPDP
from langchain_runtime_authz.pdp.compose import CandidatePDP, CircuitBreaker, DenyOverrides
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.pdp_suite import PDPContract
from langchain_runtime_authz.testing.static_pdp import StaticPDP


class TestStaticPDP(PDPContract):
    """The fake keeps the contract, so that a test on it says something."""

    def make_pdp(self, permit: bool) -> PDP:
        """A fake with the answer given."""
        return StaticPDP(permit)


class TestWasmPDP(PDPContract):
    """The default engine, steered by its data alone."""

    def make_pdp(self, permit: bool) -> PDP:
        """The shipped policy; denying, its data denies writes."""
        return WasmPDP(data=None if permit else {"effects": {"write": "deny"}})


class TestCedarPDP(PDPContract):
    """Cedar, with the shipped sample and one `forbid` more."""

    def make_pdp(self, permit: bool) -> PDP:
        """The sample; denying, with a policy against everything."""
        shipped = CedarPDP()
        if permit:
            return shipped
        folder = resources.files("langchain_runtime_authz") / "policies" / "cedar"
        text = (folder / "runtime_authz.cedar").read_text()
        return CedarPDP(
            policies=text + '@reason("closed") forbid (principal, action, resource);',
            schema=(folder / "runtime_authz.cedarschema").read_text(),
            obligations=json.loads((folder / "obligations.json").read_text()),
        )


class TestDenyOverrides(PDPContract):
    def make_pdp(self, permit: bool) -> PDP:
        """Two that permit, or one of them denies."""
        return DenyOverrides(StaticPDP(True), StaticPDP(permit, name="other"))


class TestCandidate(PDPContract):
    """A PDP with a candidate beside it that says the opposite."""

    def make_pdp(self, permit: bool) -> PDP:
        return CandidatePDP(StaticPDP(permit), StaticPDP(not permit, name="candidate"))


class TestCircuitBreaker(PDPContract):
    def make_pdp(self, permit: bool) -> PDP:
        return CircuitBreaker(StaticPDP(permit))
