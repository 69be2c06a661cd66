"""Netlink sockets of a program, which a test makes fail while the program runs."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from tests.support.faultinjection import netlink_faults
from tests.support.faultinjection.control_files import customise, replace, tally
from tests.support.faultinjection.netlink_faults import NetlinkFault

ROUTE, NETFILTER, GENERIC = 0, 12, 16
"""Protocols (linux/netlink.h): addresses and links; nftables, sets and conntrack; IPVS."""


class BrokenSockets:
    """A directory for `Sandbox.sockets`; netlink sockets in the sandbox fail as set here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        customise(directory, netlink_faults)

    def enable(
        self,
        fault: NetlinkFault,
        *,
        chance: float = 1.0,
        protocols: Collection[int] = (ROUTE, NETFILTER, GENERIC),
    ) -> None:
        """Inject `fault` with probability `chance` into each datagram of these protocols from now on."""
        replace(self.directory / "fault", f"{fault}\t{chance}\t{','.join(map(str, protocols))}")

    def disable(self) -> None:
        """Stop injecting faults."""
        (self.directory / "fault").unlink(missing_ok=True)

    @property
    def injected(self) -> Counter[str]:
        """Datagrams with an injected fault, by fault."""
        return tally(self.directory)
