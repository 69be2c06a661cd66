"""The lab itself: a node under test, its pods, another node with pods, and clients outside.

Everything here can be called from any thread but the lab's own, the main thread usually; the work is done
by the lab's loop thread and its namespace thread.
"""

import itertools
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from kproxy_lab.lab import cgroups, clients, requirements, sctp, topology
from kproxy_lab.lab.cgroups import CgroupUnavailableError, NodeCgroup
from kproxy_lab.lab.clients import Answer, AskError, Conversation, Target
from kproxy_lab.lab.forward import Forward
from kproxy_lab.lab.loop import LoopThread
from kproxy_lab.lab.namespaces import Namespace, NamespaceThread, remove_prefixed, sweep
from kproxy_lab.lab.owners import owned_prefix
from kproxy_lab.lab.servers import Protocol, Server
from kproxy_lab.lab.topology import LabSpec, NodeAddresses, Pod
from kproxy_lab.lab.wiring import Wiring

DEFAULT_TIMEOUT: Final = 1.0  # seconds; a lost SYN is sent again after one second
MANY_AT_ONCE: Final = 32


DATAGRAM_PORTS: Final = range(40000, 61000)
"""Source ports of datagrams, used in turn: a port used again soon would continue an older flow."""


class NotSupportedError(RuntimeError):
    """The kernel lacks a required feature; `str()` names it."""


class HeldConnection:
    """A socket that stays open while rules change, and exchanges lines on request."""

    def __init__(self, loop: LoopThread, conversation: Conversation) -> None:
        self._loop = loop
        self._conversation = conversation
        self.local_ip, self.local_port = conversation.local

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchange(self, text: str = "", *, timeout: float = DEFAULT_TIMEOUT) -> Answer:
        """Send a line and return its answer. Raises Broken, NoAnswer or another `AskError`."""
        return self._loop.run(clients.exchange(self._conversation, text, timeout))

    def close(self) -> None:
        """Close the socket."""
        self._conversation.close()


class Lab:
    """A network of namespaces that exists from construction to `close()`; best used with `with`.

    `node`, `peer`, `client` and `fabric` are its namespaces; `pods` the local pods, the routed ones, and
    then the remote ones, named `local-0`, ..., `routed-0`, ..., `remote-0`, ...; `node_pod` and `peer_pod`
    stand for host-network pods, with the addresses of their nodes. Several labs can exist at once, in one
    process or in many. `cgroup` is that of the node, with its bpffs, if the spec asks for one.

    Raises NotSupportedError with all reasons when the machine cannot have a lab (see `missing()`).
    """

    def __init__(self, spec: LabSpec | None = None) -> None:
        self.spec = spec or LabSpec()
        self._datagram_ports = itertools.cycle(DATAGRAM_PORTS)
        self._cleanup = ExitStack()
        try:
            self._build()
        except BaseException:
            self._cleanup.close()
            raise

    @staticmethod
    def missing(spec: LabSpec | None = None) -> list[str]:
        """The reasons why no lab can run here, for tests to skip with; empty when one can."""
        found = requirements.missing()
        if not found and spec is not None and spec.cgroup:
            found = cgroups.missing()
        return found

    @staticmethod
    def supports(protocol: Protocol) -> bool:
        """Whether `serve`, `ask` and `hold` can use a protocol on this kernel; `probe_sctp` always works."""
        return protocol != "SCTP" or requirements.supports_sctp_sockets()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End servers, connections and programs of the lab and remove its namespaces; again is harmless."""
        self._cleanup.close()

    @property
    def local_pods(self) -> list[Pod]:
        """The pods of the node under test."""
        return [pod for pod in self.pods if pod.local]

    @property
    def remote_pods(self) -> list[Pod]:
        """The pods of the other node."""
        return [pod for pod in self.pods if not pod.local]

    def serve(
        self,
        pod: Pod,
        protocol: Protocol = "TCP",
        port: int = 8080,
        *,
        addresses: Sequence[str] | None = None,
    ) -> Server:
        """Start a pod's server on a port, on both its addresses or on `addresses` of its namespace.

        Raises OSError when the port is taken and NotSupportedError for SCTP without SCTP sockets.
        """
        self._require(protocol)
        server = Server(pod, protocol, port)
        self._loop.run(server.start(tuple(addresses or (pod.ip4, pod.ip6))))
        self._servers.append(server)
        return server

    def stop_serving(self, server: Server) -> None:
        """Close a server's port and its connections; from then on the pod refuses."""
        self._servers.remove(server)
        self._loop.run(server.stop())

    def ask(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        protocol: Protocol = "TCP",
        *,
        source_ip: str | None = None,
        source_port: int = 0,
        text: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Answer:
        """Send one request to `ip`:`port` over a new connection or socket, and return the answer.

        Raises Refused, NoAnswer, Unreachable or Broken (all `AskError`), or NotSupportedError.
        """
        target = self._target(source, ip, port, protocol, source_ip, source_port)
        return self._loop.run(clients.ask(target, text, timeout))

    def ask_each(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        n: int,
        protocol: Protocol = "TCP",
        *,
        source_ips: Sequence[str] = (),
        text: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        concurrency: int = MANY_AT_ONCE,
    ) -> list[Answer | AskError]:
        """Ask `n` times, taking turns through `source_ips`; one outcome for each, in order."""
        turns = itertools.cycle(source_ips or (None,))
        targets = [self._target(source, ip, port, protocol, next(turns), 0) for _ in range(n)]
        return self._loop.run(clients.ask_each(targets, text, timeout, concurrency))

    def ask_many(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        n: int,
        protocol: Protocol = "TCP",
        *,
        source_ips: Sequence[str] = (),
        timeout: float = DEFAULT_TIMEOUT,
        concurrency: int = MANY_AT_ONCE,
    ) -> Counter[str]:
        """Ask `n` times and count who answered; failures count as `Refused`, `NoAnswer`, and so on."""
        return clients.tally(
            self.ask_each(
                source,
                ip,
                port,
                n,
                protocol,
                source_ips=source_ips,
                timeout=timeout,
                concurrency=concurrency,
            )
        )

    def hold(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        protocol: Protocol = "TCP",
        *,
        source_ip: str | None = None,
        source_port: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> HeldConnection:
        """Open a connection (for UDP: one socket, thus one flow) that stays. Raises as `ask` does."""
        target = self._target(source, ip, port, protocol, source_ip, source_port)
        held = HeldConnection(self._loop, self._loop.run(clients.hold(target, timeout)))
        self._open.callback(held.close)
        return held

    def probe_sctp(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        *,
        source_ip: str | None = None,
        source_port: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> sctp.ArrivedAt | None:
        """Send one SCTP INIT; return the pod (or host-network pod) that it reached, None for none in time.

        Needs no SCTP in the kernel. Raises Refused or Unreachable when an ICMP error says so.
        """
        target = self._target(source, ip, port, "SCTP", source_ip, source_port, sockets=False)
        everywhere = (*self.pods, self.node_pod, self.peer_pod)
        return self._loop.run(sctp.probe(target, everywhere, timeout))

    def publish(
        self, host_port: int, in_namespace: Namespace | None = None, at: tuple[str, int] = ("127.0.0.1", 0)
    ) -> int:
        """Make 127.0.0.1:`host_port` of this process reachable inside a namespace (the node), at `at`.

        Returns the port there. Prefer `Namespace.listen()` where the server accepts a socket. Raises OSError.
        """
        listener = (in_namespace or self.node).listen(*at)
        port: int = listener.getsockname()[1]
        forward = Forward(listener, host_port)
        self._loop.run(forward.start())
        self._open.callback(lambda: self._loop.run(forward.stop()))
        return port

    def _build(self) -> None:
        if reasons := self.missing():
            raise NotSupportedError("no lab can run here: " + "; ".join(reasons))
        sweep()
        cgroups.sweep()
        spec = self.spec
        self._prefix = owned_prefix(secrets.token_hex(3))
        self._namespaces: list[Namespace] = []
        self._servers: list[Server] = []
        self._cleanup.callback(remove_prefixed, self._prefix)  # what an interrupted creation left
        self.cgroup: NodeCgroup | None = None
        if spec.cgroup:
            self.cgroup = self._cleanup.enter_context(self._node_cgroup())
        self._threads = self._cleanup.enter_context(ExitStack())
        self._thread = self._namespace_thread(None)
        self._cleanup.callback(self._remove_namespaces)
        self._loop = LoopThread()
        self._cleanup.callback(self._loop.close)
        self._cleanup.callback(self._stop_servers)
        self._open = self._cleanup.enter_context(ExitStack())
        self.fabric = self._namespace("fabric")
        self.node = self._namespace("node", cgroup=cgroups.HOST)
        self.peer = self._namespace("peer")
        self.client = self._namespace("client")
        local = [self._pod(f"local-{i}", topology.NODE.pod(i), local=True) for i in range(spec.local_pods)]
        self._routed = [
            self._pod(f"routed-{i}", topology.NODE.routed_pod(i), local=True) for i in range(spec.routed_pods)
        ]
        remote = [
            self._pod(f"remote-{i}", topology.PEER.pod(i), local=False) for i in range(spec.remote_pods)
        ]
        self.pods = local + self._routed + remote
        self.node_pod = self._host_pod(topology.NODE, self.node, local=True)
        self.peer_pod = self._host_pod(topology.PEER, self.peer, local=False)
        self._thread.submit(self._wire).result()
        if spec.plain_bridge:
            self.node.run(["nft", "-f", "-"], stdin=topology.masquerade(topology.NODE))

    def _wire(self) -> None:
        with Wiring() as wiring:
            topology.wire_fabric(wiring, self.fabric)
            plain = self.spec.plain_bridge
            topology.wire_node(wiring, self.fabric, self.node, topology.NODE, "node", plain=plain)
            topology.wire_node(wiring, self.fabric, self.peer, topology.PEER, "peer")
            topology.wire_neighbours(wiring, self.node, topology.PEER)
            topology.wire_neighbours(wiring, self.peer, topology.NODE)
            topology.wire_client(wiring, self.fabric, self.client, self.spec)
            for pod in self.pods:
                node, own = (self.node, topology.NODE) if pod.local else (self.peer, topology.PEER)
                wire = topology.wire_bridged_pod if plain and pod.local else topology.wire_pod
                if pod in self._routed:
                    wire = topology.wire_routed_pod
                wire(wiring, node, own, pod, pod.name)
            topology.wire_ranges(wiring, self.fabric, self.spec.service_cidrs + self.spec.external_cidrs)
            wiring.wait_for_carrier(self._namespaces)

    def _namespace(self, role: str, *, cgroup: str = "") -> Namespace:
        """A namespace; its sockets are in the child `cgroup` of the node's cgroup, if there is one."""
        thread = self._thread
        if self.cgroup is not None and cgroup:
            thread = self._namespace_thread(self.cgroup.child(cgroup))
        namespace = Namespace(self._prefix + role, thread)
        self._namespaces.append(namespace)
        return namespace

    def _namespace_thread(self, cgroup: Path | None) -> NamespaceThread:
        thread = NamespaceThread(cgroup)
        self._threads.callback(thread.close)
        return thread

    def _node_cgroup(self) -> NodeCgroup:
        try:
            return NodeCgroup(self._prefix + "node")
        except CgroupUnavailableError as error:
            raise NotSupportedError(f"no cgroup for the lab's node: {error}") from error

    def _pod(self, name: str, addresses: tuple[str, str], *, local: bool) -> Pod:
        node_name = self.spec.node_name if local else self.spec.peer_name
        return Pod(name, *addresses, node_name, local, self._namespace(name, cgroup=name if local else ""))

    def _host_pod(self, own: NodeAddresses, namespace: Namespace, *, local: bool) -> Pod:
        name = self.spec.node_name if local else self.spec.peer_name
        return Pod(name, own.ip4[0], own.ip6[0], name, local, namespace)

    def _target(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        protocol: Protocol,
        source_ip: str | None,
        source_port: int,
        *,
        sockets: bool = True,
    ) -> Target:
        if sockets:
            self._require(protocol)
        namespace = source.namespace if isinstance(source, Pod) else source
        if protocol == "UDP":
            source_port = source_port or next(self._datagram_ports)
        return Target(namespace, ip, port, protocol, source_ip, source_port)

    def _require(self, protocol: Protocol) -> None:
        if not self.supports(protocol):
            raise NotSupportedError(f"this kernel has no {protocol} sockets")

    def _stop_servers(self) -> None:
        for server in tuple(self._servers):
            self.stop_serving(server)

    def _remove_namespaces(self) -> None:
        while self._namespaces:
            self._namespaces.pop().close()
