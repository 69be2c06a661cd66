"""What `explain` needs of the nftables mode: how its rules are read, and its intended peculiarities."""

import contextlib
import errno
import socket

from kproxy.addresses import Family
from kproxy.backends.core.packets import SharedRules
from kproxy.backends.core.shares import slots, slots_of_port
from kproxy.backends.nftables.interpreter import SingleRules, base_chains
from kproxy.config.model import ProxyConfig
from kproxy.kernel.nft import json_ruleset, ruleset
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.processes import Runner
from kproxy.modes.base import ExplainError, KernelRules
from kproxy.modes.nftables.mode import nftables_config
from kproxy.node.facts import FamilyFacts
from kproxy.plan.model import EndpointPlan, PortPlan
from kproxy.plan.outcomes import FrontendKind, ModeFacts
from kproxy.plan.weights import effective

_READINGS = 3


class NftablesReader:
    """Reads every table of nftables that a family's packets pass. See RuleReader."""

    def __init__(self, _config: ProxyConfig, _runner: Runner) -> None:
        self._nft = NetlinkNft()

    dump = "nft -j list ruleset"

    def read_kernel(self, family: Family, shared: SharedRules) -> KernelRules:
        """Read all tables; once more if a transaction was committed meantime."""
        try:
            for _ in range(_READINGS):
                before = self._nft.generation()
                tables = ruleset.read(family)
                if self._nft.generation() == before:
                    break
        except OSError as error:
            hint = " (root is needed)" if error.errno in {errno.EPERM, errno.EACCES} else ""
            raise ExplainError(f"cannot read nftables: {error.strerror or error}{hint}") from error
        interfaces: dict[int, str] = {}
        with contextlib.suppress(OSError):
            interfaces = dict(socket.if_nameindex())
        shared.offer(SingleRules(tables, family, interfaces))
        chains = base_chains(tables, family, interfaces)
        return KernelRules(chains, is_current=lambda: self._nft.generation() == before)

    @staticmethod
    def load_dump(text: str, family: Family) -> KernelRules | None:
        """The tables in what `nft -j list ruleset` printed."""
        tables = json_ruleset.parse(text, family) if text.lstrip().startswith("{") else None
        return None if tables is None else KernelRules(base_chains(tables, family, {}))


def facts(config: ProxyConfig, family: Family, node: FamilyFacts) -> ModeFacts:
    """The intended peculiarities of the mode for a family."""
    settings = nftables_config(config, family, node)
    unallocated = {FrontendKind.CLUSTER_IP} if settings.reject_unallocated else set()
    return ModeFacts(
        shares=shares,
        node_port_addresses=settings.node_addresses,
        refuses_unallocated=frozenset(unallocated),
    )


def shares(port: PortPlan, endpoints: tuple[EndpointPlan, ...], ports: int) -> tuple[float, ...]:
    """The share of each endpoint: that of its slots, or exactly its weight with session affinity."""
    weights = effective(endpoints)
    counts = weights if port.affinity_seconds is not None else slots(weights, slots_of_port(ports))
    total = sum(counts)
    return tuple(count / total for count in counts)
