"""`runtime-authz policy`: the life of a policy, from its first line to the decision somebody asks about."""

from langchain_runtime_authz.cli.policy.commands import app

__all__ = ["app"]
