"""The PDP contract, kept by the PDPs that need no service."""

from __future__ import annotations

from langchain_runtime_authz.pdp.base import PDP
from langchain_runtime_authz.pdp.wasm import WasmPDP
from langchain_runtime_authz.testing.pdp_suite import PDPContract
from langchain_runtime_authz.testing.static import StaticPDP


class TestStaticPDP(PDPContract):
    """The fake keeps the contract, so that a test on it says something."""

    def make_pdp(self, permit: bool) -> PDP:
        """A fake with the answer given."""
        return StaticPDP(permit)


class TestWasmPDP(PDPContract):
    """The default engine, steered by its data alone."""

    def make_pdp(self, permit: bool) -> PDP:
        """The shipped policy; denying, its effect table is empty."""
        return WasmPDP(data=None if permit else {"effects": {}})
