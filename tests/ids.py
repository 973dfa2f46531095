"""Names of parametrised cases that are the same in every process."""

import re


def shown(value: object) -> str:
    """`repr` without addresses, not too long."""
    return ascii(re.sub(r" at 0x[0-9a-f]+", "", ascii(value))[:80])
