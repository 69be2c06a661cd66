"""A node with kproxy that enforces policies from manifests, and pods that hold connections."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kproxy_lab.lab import Lab, LabSpec, Pod
from kproxy_lab.lab.topology import NODE
from tests.packets.program import DEADLINE, Kproxy

SERVICE_IPS = ("10.96.0.80", "fd00:10:96::80")
PORT = 8080
SILENCE = 0.3
"""Seconds without a packet after which none is coming: a lab's packets take microseconds."""
_TOKENS = itertools.count(1)


class Node:
    """The lab, its manifests, and the CNI results, which its kproxy sees below /var/lib/cni."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.results = directory / "lib" / "cni" / "results"
        self.results.mkdir(parents=True)
        self._lib = directory / "lib"
        self.program: Kproxy | None = None
        self.write({"kind": "Namespace", "metadata": {"name": "shop", "labels": {}}})
        self.node(NODE.pod_cidrs)

    @property
    def run(self) -> list[str]:
        """The arguments of a run that knows this node and its manifests."""
        node = self.lab.spec.node_name
        return ["run", "--manifests", str(self.manifests), "--hostname-override", node, "-v", "2"]

    def start(self, *flags: str, mode: str = "nftables") -> Kproxy:
        """Start kproxy, which sees the CNI results of this node only."""
        script = f'mount --bind {self._lib} /var/lib && exec "$@"'
        prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        arguments = [
            "run",
            "--manifests",
            str(self.manifests),
            "--hostname-override",
            self.lab.spec.node_name,
        ]
        arguments += ["--network-policy", "--proxy-mode", mode, "-v", "2", *flags]
        self.program = Kproxy(self.lab.node, arguments, prefix)
        return self.program

    def close(self) -> None:
        """Stop kproxy."""
        if self.program is not None and self.program.running:
            self.program.end()

    def clean_up(self) -> None:
        """Stop kproxy, and remove what it made."""
        self.close()
        done = self.lab.node.run([sys.executable, "-m", "kproxy", "cleanup"], check=False)
        assert done.returncode == 0, done.stderr

    def write(self, *objects: Mapping[str, Any]) -> None:
        """Write objects, each to a file of its own that appears whole."""
        for each in objects:
            metadata = each["metadata"]
            name = f"{each['kind']}-{metadata.get('namespace', '')}-{metadata['name']}.json".lower()
            versions = {"NetworkPolicy": "networking.k8s.io/v1", "EndpointSlice": "discovery.k8s.io/v1"}
            new = self.manifests / ".new"
            new.write_text(json.dumps({"apiVersion": versions.get(each["kind"], "v1"), **each}))
            new.rename(self.manifests / name)

    def delete(self, kind: str, name: str, namespace: str = "shop") -> None:
        """Delete an object."""
        (self.manifests / f"{kind}-{namespace}-{name}.json".lower()).unlink()

    def node(self, ranges: Sequence[str]) -> None:
        """Write the Node."""
        spec = {"podCIDRs": list(ranges)} if ranges else {}
        self.write({"kind": "Node", "metadata": {"name": self.lab.spec.node_name}, "spec": spec})

    def pod(self, at: Pod, *, known: bool = True, **labels: str) -> None:
        """Write the Pod; with its addresses, if they are `known` to the API."""
        status: dict[str, Any] = {"phase": "Running" if known else "Pending"}
        if known:
            status |= {"podIP": at.ip4, "podIPs": [{"ip": at.ip4}, {"ip": at.ip6}]}
        metadata = {"name": at.name, "namespace": "shop", "uid": f"uid-{at.name}", "labels": labels}
        self.write(
            {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": at.node_name}, "status": status}
        )

    def result(self, at: Pod) -> None:
        """Write the result of the CNI for a pod, as libcni does: not at once."""
        arguments = {"NAMESPACE": "shop", "NAME": at.name, "UID": f"uid-{at.name}"}
        cached = {
            "kind": "cniCacheV1",
            "ifName": "eth0",
            "networkName": "mynet",
            "cniArgs": [[f"K8S_POD_{name}", value] for name, value in arguments.items()],
            "result": {"ips": [{"address": f"{at.ip4}/24"}, {"address": f"{at.ip6}/64"}]},
        }
        (self.results / f"mynet-{at.name}-eth0").write_text(json.dumps(cached))

    def policy(self, name: str, selects: Mapping[str, str], **spec: object) -> None:
        """Write a policy for the pods with these labels."""
        spec = {"podSelector": {"matchLabels": selects}, **spec}
        self.write({"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})

    def service(self, *backends: Pod) -> None:
        """Write a dual-stack service, at SERVICE_IPS and PORT."""
        metadata = {"name": "web", "namespace": "shop"}
        port = {"name": "p", "port": PORT, "targetPort": PORT, "protocol": "TCP"}
        ips = {"clusterIP": SERVICE_IPS[0], "clusterIPs": list(SERVICE_IPS)}
        families = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}
        self.write({"kind": "Service", "metadata": metadata, "spec": {**ips, **families, "ports": [port]}})
        for family in ("IPv4", "IPv6"):
            labels = {"kubernetes.io/service-name": "web"}
            endpoints = [
                {"addresses": [pod.ip(4 if family == "IPv4" else 6)], "conditions": {"ready": True}}
                for pod in backends
            ]
            self.write(
                {
                    "kind": "EndpointSlice",
                    "metadata": {**metadata, "name": f"web-{family.lower()}", "labels": labels},
                    "addressType": family,
                    "endpoints": endpoints,
                    "ports": [{"name": "p", "port": PORT, "protocol": "TCP"}],
                }
            )


@contextlib.contextmanager
def running(directory: Path, spec: LabSpec) -> Iterator[Node]:
    """A node with no kproxy yet."""
    with Lab(spec) as lab:
        node = Node(lab, directory)
        try:
            yield node
        finally:
            node.close()


class Held:
    """An established connection of which the test has both ends; over UDP, a pair of sockets."""

    def __init__(self, client: socket.socket, server: socket.socket, listener: socket.socket | None) -> None:
        self.client, self.server, self._listener = client, server, listener

    def asks(self) -> bool:
        """Whether something that the client sends arrives."""
        return arrive([(self.client, self.server)])[0]

    def answers(self) -> bool:
        """Whether something that the server sends arrives."""
        return arrive([(self.server, self.client)])[0]

    def close(self) -> None:
        """Close both ends."""
        for each in (self.client, self.server, self._listener):
            if each is not None:
                each.close()


def arrive(ways: Sequence[tuple[socket.socket, socket.socket]]) -> list[bool]:
    """Send something on each way at once; whether it arrives."""
    waited: dict[socket.socket, bytes] = {}
    for sender, receiver in ways:
        waited[receiver] = f"{next(_TOKENS)}.".encode()
        sender.send(waited[receiver])
    while waited and (ready := select.select(list(waited), [], [], SILENCE)[0]):
        for receiver in ready:
            if waited[receiver] in receiver.recv(4096):
                del waited[receiver]
    return [receiver not in waited for _, receiver in ways]


def connect(source: Pod, ip: str, target: Pod, protocol: str = "TCP", port: int = PORT) -> Held:
    """Connect from a pod to `ip`, behind which is the target, and exchange something."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    own = target.ip(6 if ":" in ip else 4)
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    client = source.namespace.open_socket(family, kind)
    if protocol == "UDP":
        server = target.namespace.open_socket(family, kind)
        server.bind((own, port))
        client.connect((ip, port))
        client.send(b"?")
        assert select.select([server], [], [], DEADLINE)[0]
        server.connect(server.recvfrom(100)[1])
        held = Held(client, server, None)
    else:
        listener = target.namespace.listen(own, port)
        client.connect_ex((ip, port))
        assert select.select([listener], [], [], DEADLINE)[0], "no connection arrives"
        accepted, _ = listener.accept()
        held = Held(client, accepted, listener)
        assert select.select([], [client], [], DEADLINE)[1]
    assert held.asks()
    assert held.answers()
    return held
