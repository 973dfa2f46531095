"""Trace values of arguments to tool outputs and the user's words. Messages are never read."""
