"""The cluster of packet tests: one lab, one API server and one kproxy at a time.

A test writes objects and calls `settle()`, a barrier: a service and a slice are written last and probed with
packets until both families obey them, and their sync has ended. The API keeps the order of writes within a
kind, so everything written before is then in the kernel, and outcomes can be asserted at once, without
retries that would hide a moment of wrong behaviour.
"""

import itertools
import re
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kproxy_lab import uml
from kproxy_lab.apiserver import ApiServer
from kproxy_lab.lab import Answer, AskError, Lab, Namespace, Pod, Protocol
from kproxy_lab.lab.topology import NODE, NODE_IP4, NODE_IP6, Family
from tests.packets.modes import Capability, Mode
from tests.packets.objects import (
    FAMILIES,
    FAMILY_NAMES,
    JSON,
    NAMESPACE,
    OTHER_TARGET,
    TARGET,
    Ep,
    Port,
    Service,
    node_json,
    slice_json,
)
from tests.packets.outcomes import Seen
from tests.packets.pages import status
from tests.packets.program import Kproxy

CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/56"
ZONE = "zone-a"
PATIENCE = 15.0 if uml.inside() else 5.0
"""Seconds for a request that must be answered; this includes a retransmission.

A user-mode kernel sometimes stops for some seconds on a busy machine.
"""
SILENCE = 0.4
"""Seconds of silence that show a drop; everything else in the lab answers within a millisecond."""
ENOUGH = 60
"""Requests that reach each of three endpoints: the chance to miss one is (2/3)^60 = 3e-11."""

_VERSION = re.compile(r"#.*\n")


class Cluster:
    """A lab with its API server and kproxy; made once per mode and shared by many tests."""

    def __init__(self, mode: Mode, lab: Lab, api: ApiServer, kubeconfig: Path) -> None:
        self.mode = mode
        self.lab = lab
        self.api = api
        self.kubeconfig = kubeconfig
        self.program: Kproxy | None = None
        self.prefix: Sequence[str] = ()
        self._numbers = itertools.count(1)
        self._node_ports = itertools.count(30000)
        self._fences = itertools.count(1000)
        self._made: dict[tuple[str, str], None] = {}
        for pod in lab.pods:
            for protocol, port in itertools.product(("TCP", "UDP"), (TARGET, OTHER_TARGET)):
                lab.serve(pod, protocol, port)  # type: ignore[arg-type]
        self.set_node()
        # What no service has is routed on in every mode (see ROUTED_ON); tests of ServiceCIDRs write some.
        self.api.delete("ServiceCIDR", "", "kubernetes")
        self._fence = self.service("fence", ports=[Port(999)])
        self._made.clear()

    # -- the program

    def command(self, *flags: str) -> list[str]:
        """The arguments of `kproxy` for a run in this cluster; `flags` replace those of the mode."""
        again = {flag.partition("=")[0] for flag in flags if flag.startswith("--")}
        return [
            "run",
            *("--kubeconfig", str(self.kubeconfig)),
            *("--hostname-override", self.lab.spec.node_name),
            *("--cluster-cidr", CLUSTER_CIDRS),
            *("--iptables-min-sync-period", "10ms"),
            *("--ipvs-min-sync-period", "10ms"),
            *("-v", "2"),
            *_without(self.mode.flags(self.lab), again),
            *flags,
        ]

    def start(self, *flags: str) -> Kproxy:
        """Start kproxy (later flags win over the usual ones) and wait until packets obey it."""
        assert self.program is None or not self.program.running, "kproxy already runs in this cluster"
        self.program = Kproxy(self.lab.node, self.command(*flags), self.prefix)
        self.settle()
        return self.program

    def stop(self) -> None:
        """Stop kproxy if it runs."""
        if self.program is not None and self.program.running:
            self.program.end(signal.SIGTERM)

    @property
    def running(self) -> Kproxy:
        """The running program."""
        assert self.program is not None
        assert self.program.running, "kproxy is gone:\n" + "\n".join(self.program.log[-20:])
        return self.program

    def settle(self) -> None:
        """Wait until everything written so far is in the kernel, in both families."""
        number = next(self._fences)
        pod = self.lab.local_pods[number % 2]
        self.edit(self._fence, lambda spec: spec["ports"][0].update(port=number))
        self.slices(self._fence, [pod])
        self._made.pop(("EndpointSlice", "fence-a-4"), None)
        self._made.pop(("EndpointSlice", "fence-a-6"), None)
        for family in FAMILIES:
            self.running.until(
                lambda family=family: self.outcome(self.lab.client, self._fence.ip(family), number),  # type: ignore[misc]
                pod.name,
            )
        self.running.until(self._in_step, expected=True)

    def _in_step(self) -> bool:
        """Return whether no sync runs: a sync writes in steps, and the barrier may be in an early one."""
        said = status(self)
        waiting = said["pending"]["services"] or said["pending"]["endpoints"]
        return not waiting or any(family["quarantined"] for family in said["families"].values())

    # -- objects

    def service(
        self,
        name: str | None = None,
        *,
        ports: Sequence[Port] = (Port(),),
        type: str = "ClusterIP",  # noqa: A002
        families: Sequence[Family] = FAMILIES,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        created: str | None = None,
        ingress: Sequence[JSON] = (),
        **spec: Any,
    ) -> Service:
        """Create a service, dual-stack unless `families` says otherwise; `spec` holds further spec fields."""
        # Of services created in the same second, the one whose name sorts first counts as the older.
        name = name or f"svc-{next(self._numbers):04}"
        metadata: JSON = {"name": name, "namespace": NAMESPACE}
        metadata |= {"labels": dict(labels)} if labels else {}
        metadata |= {"annotations": dict(annotations)} if annotations else {}
        metadata |= {"creationTimestamp": created} if created else {}
        has_node_ports = type in {"NodePort", "LoadBalancer"}
        numbers = {p.name: p.node_port or (next(self._node_ports) if has_node_ports else 0) for p in ports}
        dual = len(families) == 2
        obj = self.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {
                    "type": type,
                    "ports": [port.in_service(numbers[port.name]) for port in ports],
                    "ipFamilyPolicy": "RequireDualStack" if dual else "SingleStack",
                    "ipFamilies": [FAMILY_NAMES[family] for family in families],
                    **spec,
                },
                "status": {"loadBalancer": {"ingress": list(ingress)} if ingress else {}},
            }
        )
        addresses = obj["spec"].get("clusterIPs") or ()
        ips: dict[Family, str] = {6 if ":" in ip else 4: ip for ip in addresses if ip != "None"}
        return Service(name, tuple(ports), ips, numbers)

    def slices(
        self,
        service: Service,
        endpoints: Sequence[Ep | Pod],
        *,
        name: str = "a",
        ports: Sequence[Port] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Create or replace a service's slice `name`, one object for each family."""
        for family in service.ips or FAMILIES:
            self.apply(
                slice_json(
                    service.name,
                    f"{service.name}-{name}-{family}",
                    family,
                    endpoints,
                    service.ports if ports is None else ports,
                    labels or {},
                )
            )

    def publish(self, endpoints: Sequence[Ep | Pod], **service: Any) -> Service:
        """Create a service with endpoints and wait until it is in force."""
        made = self.service(**service)
        self.slices(made, endpoints)
        self.settle()
        return made

    def scale(self, service: Service, endpoints: Sequence[Ep | Pod]) -> None:
        """Give a service other endpoints and wait until they are in force."""
        self.slices(service, endpoints)
        self.settle()

    def apply(self, obj: JSON, *, validate: bool = True, kind: str | None = None) -> JSON:
        """Write any object and remember to delete it after the test."""
        stored = self.api.apply(obj, validate=validate, kind=kind)
        metadata = obj.get("metadata")
        if isinstance(metadata, dict):
            self._made[kind or obj["kind"], str(metadata.get("name"))] = None
        return stored

    def edit(self, service: Service, change: Any) -> None:
        """Let `change` alter the spec of a stored service."""
        self.api.edit("Service", NAMESPACE, service.name, lambda obj: change(obj["spec"]))

    def edit_meta(self, kind: str, name: str, change: Any) -> None:
        """Let `change` alter the metadata of a stored object."""
        namespace = "" if kind == "Node" else NAMESPACE
        self.api.edit(kind, namespace, name, lambda obj: change(obj["metadata"]))

    def delete(self, service: Service) -> None:
        """Delete a service and leave its slices, as the API does until the controller follows."""
        self.api.delete("Service", NAMESPACE, service.name)

    def set_node(self, zone: str = ZONE) -> None:
        """Write the Node object of the node under test."""
        cidrs = NODE.pod_cidrs
        self.api.apply(node_json(self.lab.spec.node_name, (*NODE_IP4, *NODE_IP6), cidrs, zone))

    def forget(self) -> None:
        """Delete the objects written since the last call."""
        for kind, name in reversed(self._made):
            self.api.delete(kind, NAMESPACE, name)
        self._made.clear()

    def external_ips(self) -> dict[Family, str]:
        """A fresh address outside, of each family, that the fabric routes to the node."""
        number = next(self._numbers)
        return {4: f"203.0.113.{number % 250 + 2}", 6: f"2001:db8:2::{number + 16:x}"}

    def free_node_port(self) -> int:
        """A node port that no service has."""
        return next(self._node_ports)

    # -- packets

    def outcome(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        protocol: Protocol = "TCP",
        *,
        source_ip: str | None = None,
        timeout: float = PATIENCE,
    ) -> str:
        """Send one request; return the answering pod, or the error's name (`Refused`, `NoAnswer`, ...)."""
        try:
            answer = self.lab.ask(source, ip, port, protocol, source_ip=source_ip, timeout=timeout)
        except AskError as error:
            return type(error).__name__
        return answer.pod

    def silent(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        protocol: Protocol = "TCP",
        *,
        source_ip: str | None = None,
    ) -> bool:
        """Whether a request is dropped: neither answered nor refused."""
        return self.outcome(source, ip, port, protocol, source_ip=source_ip, timeout=SILENCE) == "NoAnswer"

    def ask(
        self,
        source: Namespace | Pod,
        ip: str,
        port: int,
        protocol: Protocol = "TCP",
        *,
        n: int = ENOUGH,
        source_ips: Sequence[str] = (),
    ) -> Seen:
        """Ask `n` times; raises AssertionError if a single one is not answered."""
        outcomes = self.lab.ask_each(source, ip, port, n, protocol, source_ips=source_ips, timeout=PATIENCE)
        failures = [outcome for outcome in outcomes if isinstance(outcome, AskError)]
        assert not failures, f"{len(failures)} of {n} not answered, the first: {failures[0]!r}"
        return Seen([outcome for outcome in outcomes if isinstance(outcome, Answer)])

    def as_node(self, pods: Sequence[Pod], family: Family) -> dict[str, set[str]]:
        """The source address each pod sees of what the node masquerades: that of the link towards it."""
        at = FAMILIES.index(family)
        uplink = (NODE_IP4[0], NODE_IP6[0])[at]
        return {pod.name: {NODE.gateways[at] if pod.local else uplink} for pod in pods}

    def as_itself(self, pod: Pod, family: Family, *, packets: bool = False) -> set[str]:
        """The source address that a pod sees when it reaches itself.

        Netfilter needs the node's, for the reply would not come back to be translated. Where no packet is
        translated, the pod sees its own address: for TCP to a cluster IP in a mode with a socket table,
        unless `packets` says that this service is translated packet by packet there too.
        """
        if Capability.SOCKET_TABLE in self.mode.capabilities and not packets:
            return {pod.ip(family)}
        return {NODE.gateways[FAMILIES.index(family)]}

    def client_ips(self, family: Family) -> tuple[str, ...]:
        """The outside client's addresses."""
        return self.lab.spec.client_ip4 if family == 4 else self.lab.spec.client_ip6

    # -- rules in the kernel, for tests that damage or count them

    def rules(self, family: Family) -> list[str]:
        """What iptables-save prints, without comments and counters."""
        dump = self.lab.node.run([self.mode.program(family, "save")]).stdout
        return [re.sub(r" \[\d+:\d+\]$", "", line) for line in _VERSION.sub("", dump).splitlines()]

    def iptables(self, family: Family, *arguments: str) -> None:
        """Run iptables by hand in the node."""
        self.lab.node.run([self.mode.program(family), "-w", "5", *arguments])


def _without(arguments: Sequence[str], names: Collection[str]) -> Iterator[str]:
    """Return the arguments without these flags and their values; values of some flags would add up."""
    dropped = False
    for argument in arguments:
        if argument.startswith("--"):
            dropped = argument.partition("=")[0] in names
        if not dropped:
            yield argument


@contextmanager
def build(mode: Mode, directory: Path) -> Iterator[Cluster]:
    """A lab with an API server that listens in the node's namespace; kproxy is not started yet."""
    with (
        Lab(mode.spec()) as lab,
        ApiServer(host="0.0.0.0", port=6443, sockets=lab.node.listen) as api,
    ):
        cluster = Cluster(mode, lab, api, api.kubeconfig(directory / "kubeconfig"))
        try:
            yield cluster
        finally:
            cluster.stop()
