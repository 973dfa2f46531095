"""Name the base classes of models, without importing those that few processes use."""

from __future__ import annotations

import sys
from typing import Final

from langchain_core.language_models import BaseLanguageModel

DECISIONS: Final = "langchain_core.decisions.base"  # dear to import, and in few processes


def decision_models() -> list[type]:
    """Return the classes of decision models that this process has defined."""
    found = getattr(sys.modules.get(DECISIONS), "BaseDecisionModel", None)
    return [] if found is None else found.__subclasses__()


def model_types() -> tuple[type, ...]:
    """Return the base classes of the models that an object graph may hold."""
    return (BaseLanguageModel, *decision_models()) if DECISIONS in sys.modules else (BaseLanguageModel,)
