"""A node in memory in eBPF mode: the socket table of one family, or of two."""

from __future__ import annotations

from typing import Any

from kproxy.addresses import Family
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.kernel.bpf.types import Capacity, Sizes
from tests.backends.node import Node
from tests.builders import endpoint, endpoint_slice, port, service
from tests.support.fake_socket_table import FakeSocketTable

TINY = Sizes(Capacity(1, 2), Capacity(1, 2), 2)
"""Maps that grow with nearly every service."""

LARGE = Sizes(Capacity(64, 256), Capacity(64, 256), 128)
"""Maps that suffice."""


class EbpfNode(Node[SocketBackend, dict[str, list[str]]]):
    """One node of one family; `now` is its clock, which goes on only by waiting, or by the test."""

    def __init__(
        self, family: Family = Family.IPV4, config: SocketConfig | None = None, sizes: Sizes = TINY
    ) -> None:
        self.now = 1000.0
        self.config = config or SocketConfig(family)
        self.table = FakeSocketTable(sizes)
        self.waits = 0
        super().__init__(family)

    def make_backend(self) -> SocketBackend:
        """A backend over the table as a new process finds it."""
        if hasattr(self, "backend"):
            self.table = self.table.restarted()
        self.shared = SharedTable(self.table, [self._family])
        return SocketBackend(self._family, self.shared, self.config, lambda: self.now, self.wait)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.waits += 1
        self.now += seconds

    def another(self) -> EbpfNode:
        """A node with the same settings and an empty kernel."""
        return EbpfNode(self._family, self.config)

    def state(self) -> dict[str, list[str]]:
        """The endpoints in the slots of every frontend that programs find."""
        return self.table.contents(self._family)

    def served(self) -> set[Any]:
        """The frontends that lead to an endpoint."""
        state = self.state()
        assert all(slots and not any(each.endswith(":0") for each in slots) for slots in state.values())
        return set(state)


def pods(*numbers: int, name: str = "svc1", node: str = "node2", **conditions: Any) -> dict[str, Any]:
    """The slice of a service with these pods."""
    ready = [endpoint(f"10.1.0.{number}", node=node, **conditions) for number in numbers]
    return endpoint_slice(*ready, service=name, ports=[port(8080)])


def with_service(*numbers: int, **fields: Any) -> EbpfNode:
    """A node with one service and these pods, in sync."""
    node = EbpfNode()
    node.put(service(**fields), pods(*numbers))
    node.done()
    return node
