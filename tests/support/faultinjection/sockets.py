"""Netlink sockets of a program that can be told to fail while it runs."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from tests.support.faultinjection import deaf
from tests.support.faultinjection.deaf import Loss
from tests.support.faultinjection.orders import customise, replace, tally

ROUTE, NETFILTER, GENERIC = 0, 12, 16
"""Protocols (linux/netlink.h): addresses and links; nftables, sets and conntrack; IPVS."""


class BrokenSockets:
    """A directory for `Room`, whose program's sockets do as they are told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        customise(directory, deaf)

    def order(
        self, loss: Loss, *, chance: float = 1.0, protocols: Collection[int] = (ROUTE, NETFILTER, GENERIC)
    ) -> None:
        """Have requests that are sent from now on fail: `chance` of each datagram of these protocols."""
        replace(self.directory / "order", f"{loss}\t{chance}\t{','.join(map(str, protocols))}")

    def behave(self) -> None:
        """Withdraw the order."""
        (self.directory / "order").unlink(missing_ok=True)

    @property
    def done(self) -> Counter[str]:
        """How many datagrams went wrong, by loss."""
        return tally(self.directory)
