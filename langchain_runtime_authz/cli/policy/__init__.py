"""`runtime-authz policy`: write, test, compare, release and explain policies."""

from langchain_runtime_authz.cli.policy.commands import app

__all__ = ["app"]
