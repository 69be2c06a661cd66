"""Which layout a cluster gets: kube-proxy's chains while it is small, the scalable ones once it is large.

Small clusters keep the chains that people and their tools know. The two bounds lie apart, so that a cluster
whose size varies a little does not change over again and again.
"""

from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.scalable import ScalableLayout

LAYOUTS = ("auto", "standard", "scalable")

LARGE, SMALL = 5_000, 3_500
"""Service ports and endpoints of one family from which on a cluster is large, and under which it is small."""


def layouts(config: IptablesConfig, name: str) -> tuple[Layout, Layout | None]:
    """The layout to use and, if the choice is automatic, the one to use instead in a large cluster."""
    if name == "scalable":
        return ScalableLayout(config), None
    return StandardLayout(config), ScalableLayout(config) if name == "auto" else None


def select_layout(usual: Layout, larger: Layout | None, size: int, current: Layout | None = None) -> Layout:
    """The layout for so many service ports and endpoints; between the bounds it stays as it is."""
    if larger is None or size < SMALL:
        return usual
    return larger if size >= LARGE else current or usual
