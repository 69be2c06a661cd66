"""The list of all proxy modes. A new mode is one line here."""

from collections.abc import Callable

from kproxy.kernel.processes import Runner
from kproxy.modes.base import Leftovers, ModeRegistry, ModeSpec
from kproxy.modes.ebpf.spec import SPEC as EBPF
from kproxy.modes.iptables.spec import SPEC as IPTABLES
from kproxy.modes.ipvs.spec import SPEC as IPVS
from kproxy.modes.nftables.spec import SPEC as NFTABLES

MODES: tuple[ModeSpec, ...] = (IPTABLES, IPVS, NFTABLES, EBPF)


def mode_registry(
    runner: Runner | None = None, more: Callable[[], tuple[Leftovers, ...]] = tuple
) -> ModeRegistry:
    """All modes; `runner` runs the programs that a running mode starts. See ModeRegistry for `more`."""
    return ModeRegistry(MODES, runner, more)
