"""Demonstrations: `bank` takes seconds, `agentdojo` 30 seconds."""
