"""Tracked UDP flows as values, and the interface to conntrack."""

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from kproxy.addresses import Family


class Flow(msgspec.Struct, frozen=True, gc=False):
    """A UDP flow: its original destination, and the source of its replies (`answers`, `answers_port`).

    Without translation, both are the same. Addresses are canonical. `answered`: a reply was seen.
    `handle` are the netlink attributes that identify the entry.
    """

    dst: str
    dst_port: int
    answers: str
    answers_port: int
    answered: bool = False
    handle: bytes = b""


class ConntrackError(Exception):
    """Flows could not be read or deleted."""


class Conntrack(Protocol):
    """Connection tracking in one network namespace."""

    def udp_flows(self, family: Family, ports: Collection[int]) -> list[Flow]:
        """Return the UDP flows that were sent to one of these ports. Raises ConntrackError."""

    def delete(self, family: Family, flows: Sequence[Flow]) -> list[Flow]:
        """Delete flows; return those that still existed. Raises ConntrackError."""
