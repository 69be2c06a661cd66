"""Select the layout by cluster size: kube-proxy's chains if small, the scalable chains if large.

Small clusters keep the chains that operators and their tools know. A change of the layout writes all rules
again, so a cluster whose size varies must not change it repeatedly. Two bounds (hysteresis) ignore small
variations. A dwell time limits the changes that one tenant can cause by scaling up and down.
"""

import time
from collections.abc import Callable

from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.scalable import ScalableLayout

LARGE, SMALL = 5_000, 3_500
"""Service ports plus endpoints of one family: a cluster is large from LARGE on, and small below SMALL."""

HUGE = 10_000
"""From this size on the large layout is used at once, whatever the dwell time.

50,000 endpoints of one service take 20 s with a chain for each (iptables-nft), and 1 s with a rule for each.
"""

DWELL = 600.0
"""Seconds between two changes of the layout; one change is saved, so a single way there and back is at once.

A change takes a second or more at 5,000 services: with one in ten minutes, 0.2 % of the time. The wrong
layout works too: it only makes syncs slower, or its chains less familiar.
"""


def layouts(config: IptablesConfig, name: str) -> tuple[Layout, Layout | None]:
    """The layout to use and, if the choice is automatic, the one to use instead in a large cluster."""
    if name == "scalable":
        return ScalableLayout(config), None
    return StandardLayout(config), ScalableLayout(config) if name == "auto" else None


def select_layout(usual: Layout, larger: Layout | None, size: int, current: Layout | None = None) -> Layout:
    """Return the layout for `size` service ports and endpoints; between the bounds, the current one."""
    if larger is None or size < SMALL:
        return usual
    return larger if size >= LARGE else current or usual


class Dwell:
    """Limits the changes of a layout in use: one in DWELL seconds on average, and at most two at once.

    A size that stays beyond its bound is adopted with the first change of a service after the dwell time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used_until = clock()

    def allows(self, size: int = 0) -> bool:
        """Whether the layout may change now, to that for `size` service ports and endpoints."""
        return size >= HUGE or self._clock() >= self._used_until - DWELL

    def changed(self) -> None:
        """Note that it has changed."""
        self._used_until = max(self._used_until, self._clock()) + DWELL
