"""The share of each endpoint in the traffic of a list, as numbers of slots. Pure.

A slot is a number that the kernel draws. Every mode whose kernel draws numbers gives an endpoint the same
share.
"""

import math
from collections.abc import Sequence

MAX_SLOTS = 1024
"""Greatest number of slots of a list with weights; shares are rounded to fit."""

SERVICE_SLOTS = 8192
"""Slots for weights that the ports of a service share: more than eight ports are rounded more coarsely."""

FEWEST_SLOTS = 64
"""No port has to be content with less: a share is then exact to 1.6 %."""


def slots_of_port(ports: int) -> int:
    """The greatest number of slots of each list of a service with so many ports."""
    return min(MAX_SLOTS, max(FEWEST_SLOTS, SERVICE_SLOTS // max(1, ports)))


def slots(weights: Sequence[int], most: int = MAX_SLOTS) -> list[int]:
    """Return how many of the numbers 0..N-1 each endpoint gets, in proportion to the weights.

    Exact up to `most` numbers; else rounded, but each endpoint of positive weight gets at least one.
    """
    divisor = math.gcd(*weights) or 1
    counts = [weight // divisor for weight in weights]
    total = sum(counts)
    most = max(most, len(counts))
    if total <= most:
        return counts
    return [max(1, round(count * most / total)) if count else 0 for count in counts]
