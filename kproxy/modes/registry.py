"""The list of all proxy modes. A new mode is one line here."""

from kproxy.kernel.processes import Runner
from kproxy.modes.base import ModeRegistry, ModeSpec
from kproxy.modes.iptables.spec import SPEC as IPTABLES
from kproxy.modes.ipvs.spec import SPEC as IPVS
from kproxy.modes.nftables.spec import SPEC as NFTABLES

MODES: tuple[ModeSpec, ...] = (IPTABLES, IPVS, NFTABLES)


def mode_registry(runner: Runner | None = None) -> ModeRegistry:
    """All modes; `runner` runs the programs that a running mode starts."""
    return ModeRegistry(MODES, runner)
