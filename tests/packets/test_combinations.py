"""Random combinations of services, policies and endpoints, compared with an independent model.

Everything is drawn from a fixed seed. Each service is probed at each of its addresses, from outside, from the
node, and from pods that are its endpoints and pods that are not; then endpoints change.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from kproxy_lab.lab import Answer, AskError, Lab, Namespace, Pod
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import ENOUGH, PATIENCE, SILENCE, ZONE, Cluster
from tests.packets.objects import Ep, Port, Service
from tests.packets.semantics import DROPPED, Exposure, Kind, Outcome, Site, Vantage, outcome

pytestmark = pytest.mark.root

SERVICES = 5
CONDITIONS: list[dict[str, bool | None]] = [
    *([{}] * 3),
    {"ready": None},
    {"ready": False, "serving": False},
    {"ready": False, "serving": False, "terminating": True},
    {"ready": False, "serving": None, "terminating": True},
    {"ready": True, "serving": True, "terminating": True},
]
DRAINING: dict[str, bool | None] = {"ready": False, "serving": True, "terminating": True}
RANGES: list[list[str]] = [
    [],
    ["192.0.2.10/32"],
    [f"{NODE_IP4[0]}/32", f"{NODE_IP6[0]}/128"],
    ["10.244.0.0/16 ", "fd00:10:244::/56"],
    [" 0.0.0.0/0", "2001:db8:1::/64"],
    ["192.0.2.77/31", "2001:db8:1::77/64"],
]


@dataclass(frozen=True)
class Case:
    """A service as it was asked for, and its addresses."""

    service: Service
    port: Port
    exposure: Exposure
    external: Mapping[Family, str]
    balancer: Mapping[Family, str]

    def addresses(self, family: Family) -> Iterator[tuple[Kind, str, int]]:
        """Every kind of address it has, with the port."""
        yield "cluster", self.service.ip(family), self.port.number
        if self.external:
            yield "external", self.external[family], self.port.number
        if self.balancer:
            yield "balancer", self.balancer[family], self.port.number
        if self.service.node_port:
            yield "node", (NODE_IP4 if family == 4 else NODE_IP6)[1], self.service.node_port


def _endpoints(lab: Lab, rng: random.Random) -> list[Ep]:
    """At most three, so that few requests meet all of them."""
    pods = rng.choice([lab.local_pods, lab.remote_pods, lab.pods, lab.pods])
    only_draining, zones, nodes = rng.random() < 0.3, rng.random() < 0.4, rng.random() < 0.3
    return [
        Ep(
            pod,
            **(DRAINING if only_draining else rng.choice([*CONDITIONS, DRAINING])),
            zones=(rng.choice([ZONE, ZONE, "zone-b"]),) if zones else (),
            nodes=(rng.choice([lab.spec.node_name, lab.spec.peer_name]),) if nodes else (),
        )
        for pod in rng.sample(pods, rng.randint(0, 3))
    ]


def _case(cluster: Cluster, rng: random.Random) -> Case:
    external = cluster.external_ips() if rng.random() < 0.5 else {}
    type_ = rng.choice(["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"])
    balancer = cluster.external_ips() if type_ == "LoadBalancer" else {}
    port = Port(rng.choice([80, 8443]), rng.choice(["TCP", "UDP"]))
    spec: dict[str, Any] = {"internalTrafficPolicy": rng.choice(["Cluster", "Cluster", "Local"])}
    if external:
        spec["externalIPs"] = list(external.values())
    if external or type_ != "ClusterIP":
        spec["externalTrafficPolicy"] = rng.choice(["Cluster", "Local"])
    if balancer:
        spec["loadBalancerSourceRanges"] = rng.choice(RANGES)
    if balancer and spec["externalTrafficPolicy"] == "Local":
        spec["healthCheckNodePort"] = cluster.free_node_port()
    service = cluster.service(
        type=type_, ports=[port], ingress=[{"ip": ip} for ip in balancer.values()], **spec
    )
    return Case(service, port, Exposure(spec, ()), external, balancer)


def _sources(cluster: Cluster, family: Family) -> Iterator[tuple[Vantage, Namespace | Pod, str]]:
    lab = cluster.lab
    yield "outside", lab.client, cluster.client_ips(family)[0]
    yield "node", lab.node, (NODE_IP4 if family == 4 else NODE_IP6)[0]
    for pod in (lab.local_pods[0], lab.local_pods[2]):
        yield "pod", pod, pod.ip(family)


def _differences(cluster: Cluster, case: Case, family: Family) -> Iterator[str]:
    """Yield a line for each outcome that differs from the model."""
    node_ip = (NODE_IP4 if family == 4 else NODE_IP6)[0]
    site = Site(cluster.lab.spec.node_name, ZONE, node_ip)
    asked = itertools.product(_sources(cluster, family), case.addresses(family))
    for (vantage, source, ip), (kind, address, port) in asked:
        wanted = outcome(case.exposure, site, kind, vantage, ip)
        silent = wanted.refusal == DROPPED or (vantage == "node" and bool(wanted.refusal))
        answers = cluster.lab.ask_each(
            source,
            address,
            port,
            1 if wanted.refusal else ENOUGH,
            case.port.protocol,
            source_ips=(ip,) if vantage == "outside" else (),
            timeout=SILENCE if silent else PATIENCE,
        )
        packets = kind != "cluster" or case.port.protocol != "TCP" or "sessionAffinity" in case.exposure.spec
        if problem := _judge(cluster, family, wanted, answers, (vantage, source, ip), packets=packets):
            asking = f"{case.service.key} from {vantage} {ip} to {kind} {address}"
            yield f"{asking}: {problem} instead of {wanted}; {case.exposure}"


def _judge(
    cluster: Cluster,
    family: Family,
    wanted: Outcome,
    answers: list[Answer | AskError],
    asker: tuple[Vantage, Namespace | Pod, str],
    *,
    packets: bool,
) -> str:
    """`packets`: every mode translates these packet by packet."""
    vantage, source, ip = asker
    failures = {type(answer).__name__ for answer in answers if isinstance(answer, AskError)}
    answered = [answer for answer in answers if isinstance(answer, Answer)]
    if wanted.refusal:
        # Packets of the node itself to an outside address may leave it; their outcome is not kproxy's.
        right = bool(failures) if vantage == "node" else failures == {wanted.refusal}
        return "" if right else f"{failures or answered[0].pod}"
    pods = {answer.pod for answer in answered}
    if failures or pods != wanted.pods:
        return f"{failures | pods}"
    for pod in (pod for pod in cluster.lab.pods if pod.name in pods):
        seen = {answer.source_ip_seen for answer in answered if answer.pod == pod.name}
        expected = cluster.as_node([pod], family)[pod.name] if wanted.masqueraded else {ip}
        if pod is source and not wanted.masqueraded:
            expected = cluster.as_itself(pod, family, packets=packets)
        if seen != expected:
            return f"{pod.name} saw {seen} instead of {expected}"
    return ""


@pytest.mark.parametrize("seed", [1, 2])
def test_combinations(cluster: Cluster, family: Family, seed: int) -> None:
    rng = random.Random(seed)
    cases = [_case(cluster, rng) for _ in range(SERVICES)]
    for turn in range(2):
        for number, case in enumerate(cases):
            if turn and case.port.protocol == "UDP":
                continue  # a source port that is used again stays with its endpoint as long as that serves
            endpoints = _endpoints(cluster.lab, rng)
            cluster.slices(case.service, endpoints)
            cases[number] = replace(case, exposure=replace(case.exposure, endpoints=endpoints))
        cluster.settle()
        found = [line for case in cases for line in _differences(cluster, case, family)]
        assert not found, "\n".join(found)
