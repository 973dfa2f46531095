"""Demonstrations that run as they stand: `bank` in seconds, `agentdojo` in half a minute."""
