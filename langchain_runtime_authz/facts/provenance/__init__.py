"""Trace where the values of arguments came from: tools' outputs and the user's words. Messages are never looked at."""
