"""Select the layout by cluster size: kube-proxy's chains if small, the scalable chains if large.

Small clusters keep the chains that operators and their tools know. The two bounds differ (hysteresis), so
that a cluster whose size varies a little does not change its layout repeatedly.
"""

from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.scalable import ScalableLayout

LAYOUTS = ("auto", "standard", "scalable")

LARGE, SMALL = 5_000, 3_500
"""Service ports plus endpoints of one family: a cluster is large from LARGE on, and small below SMALL."""


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
