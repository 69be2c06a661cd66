"""What the eBPF mode leaves besides the nftables table: the pins that keep its programs attached."""

from collections.abc import Mapping

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.ebpf.kernel import known_tables, remove_table, table_settings


class PinLeftovers:
    """The pins of the socket table; those of a kproxy that runs elsewhere on this machine stay."""

    def __init__(self, config: ProxyConfig | None, runner: Runner) -> None:  # noqa: ARG002 - of the interface
        """`config`: the settings of the mode that takes over; without, every table here is meant."""
        self._directories = known_tables() if config is None else (table_settings(config).pins,)

    def begin(self, used: Mapping[Family, Variant]) -> None:  # noqa: ARG002
        """Remove the pins: from now on connections are translated packet by packet."""
        self._remove()

    def run_timers(self) -> float | None:
        """Do nothing; no removal is deferred."""
        return None

    def clear(self, *, kube_proxy: bool) -> bool:  # noqa: ARG002 - kube-proxy has no such table
        """Remove the pins; True if they are gone."""
        return self._remove()

    def dissolve(self) -> bool:
        """Do nothing; `clear` has removed everything."""
        return True

    def _remove(self) -> bool:
        done = [remove_table(each) for each in self._directories]
        return all(done)
