"""Demonstrations to run as they are: `bank` in seconds, `agentdojo` in 30 seconds."""
