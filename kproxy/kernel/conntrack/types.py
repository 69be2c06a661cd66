"""Tracked UDP flows as values, and what can be asked of a kernel about them."""

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from kproxy.addresses import Family


class Flow(msgspec.Struct, frozen=True, gc=False):
    """A UDP flow: where it was sent to, and who answers it.

    Where nothing was translated, both are the same. Addresses are canonical. `answered`: there was an answer.
    `handle` is what the kernel wants to hear to find the entry again.
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
    """A kernel that tracks connections, in one network namespace."""

    def udp_flows(self, family: Family, ports: Collection[int]) -> list[Flow]:
        """The UDP flows that were sent to one of these ports. Raises ConntrackError."""

    def delete(self, family: Family, flows: Sequence[Flow]) -> int:
        """Delete flows; how many there still were. Raises ConntrackError."""
