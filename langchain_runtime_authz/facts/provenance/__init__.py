"""Trace where the values of arguments came from.

`observe_output` reads what a tool returned, `atoms_of` the arguments of a later call, and `trace` tells who asserted them.
Messages are never looked at.
"""
