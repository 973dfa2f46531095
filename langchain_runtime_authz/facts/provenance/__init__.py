"""Where the values of arguments came from.

`observe_output` reads what a tool returned, as the guard sees it; `trace` tells of a later call's arguments
who asserted them. What messages say of either is never looked at.
"""
