"""Policy decision points: protocol, messages, and a module for each engine."""

from langchain_runtime_authz.evaluation import Decision, EvaluationRequest
from langchain_runtime_authz.pdp.base import PDP

__all__ = ["PDP", "Decision", "EvaluationRequest"]
