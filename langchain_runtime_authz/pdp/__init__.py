"""Policy decision points: the protocol and what travels over it. Each engine has a module of its own."""

from langchain_runtime_authz.authzen import Decision, EvaluationRequest
from langchain_runtime_authz.pdp.base import PDP

__all__ = ["PDP", "Decision", "EvaluationRequest"]
