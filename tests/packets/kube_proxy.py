"""What kube-proxy writes for one service, in its iptables and IPVS modes: a stand-in for the program.

The iptables mode is that of pkg/proxy/iptables/proxier.go: missing jumps are inserted, its chains are
rewritten in one restore per family. The IPVS mode is that of pkg/proxy/ipvs/proxier.go and ipset.go: sets,
virtual servers, addresses on kube-ipvs0, and a fixed number of rules around them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kproxy.backends.core.hashes import port_hash
from kproxy.backends.iptables.names import endpoint_chain
from kproxy_lab.lab import Pod
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import CLUSTER_CIDRS, Cluster
from tests.packets.objects import FAMILIES, NAMESPACE, TARGET, Service

_JUMPS = (
    ("nat", "OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
    ("nat", "PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
    ("filter", "FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
)
_IPVS_JUMPS = (
    *_JUMPS,
    ("filter", "INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
    ("filter", "FORWARD", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("filter", "INPUT", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("filter", "INPUT", "KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
    ("filter", "OUTPUT", "KUBE-IPVS-OUT-FILTER", "kubernetes ipvs access filter"),
)
_IPVS_CHAINS = {
    "filter": (
        *("FORWARD", "NODE-PORT", "PROXY-FIREWALL", "SOURCE-RANGES-FIREWALL", "IPVS-FILTER"),
        "IPVS-OUT-FILTER",
    ),
    "nat": ("SERVICES", "POSTROUTING", "NODE-PORT", "LOAD-BALANCER", "MARK-MASQ"),
}
_IPVS_SETS = {
    "LOOP-BACK": "hash:ip,port,ip",
    "CLUSTER-IP": "hash:ip,port",
    "EXTERNAL-IP": "hash:ip,port",
    "EXTERNAL-IP-LOCAL": "hash:ip,port",
    "LOAD-BALANCER": "hash:ip,port",
    "LOAD-BALANCER-LOCAL": "hash:ip,port",
    "LOAD-BALANCER-FW": "hash:ip,port",
    "LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip",
    "LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "NODE-PORT-TCP": "bitmap:port",
    "NODE-PORT-LOCAL-TCP": "bitmap:port",
    "NODE-PORT-UDP": "bitmap:port",
    "NODE-PORT-LOCAL-UDP": "bitmap:port",
    "NODE-PORT-SCTP-HASH": "hash:ip,port",
    "NODE-PORT-LOCAL-SCTP-HASH": "hash:ip,port",
    "HEALTH-CHECK-NODE-PORT": "bitmap:port",
    "IPVS-IPS": "hash:ip",
}
_MASQUERADE = (
    "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
)
_FORWARD = (
    "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
    "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)


@dataclass(frozen=True, slots=True)
class KubeProxy:
    """A kube-proxy that uses one iptables variant and knows one service with these local pods."""

    cluster: Cluster
    variant: str
    service: Service
    pods: Sequence[Pod]

    def write_iptables_mode(self) -> None:
        """Write what it writes when it starts in iptables mode."""
        for family in FAMILIES:
            self._restore(family, _iptables_lines(self.service, self.pods, family), _JUMPS)

    def write_ipvs_mode(self) -> None:
        """Write what it writes when it starts in IPVS mode: sets first, then addresses, servers and rules."""
        node = self.cluster.lab.node
        node.run(["sysctl", "-q", "-w", "net.ipv4.vs.conntrack=1"])
        if node.run(["ip", "link", "show", "kube-ipvs0"], check=False).returncode:
            node.run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"])
        for family in FAMILIES:
            ip, host = self.service.ip(family), 32 if family == 4 else 128
            sets = "".join(f"{line}\n" for line in self._sets(family))
            node.run(["ipset", "restore", "-exist"], stdin=sets)
            node.run(["ip", f"-{family}", "address", "replace", f"{ip}/{host}", "dev", "kube-ipvs0"])
            for server in self._servers(family):
                node.run(["ipvsadm", "-A", "-t", server, "-s", "rr"])
                for pod in self.pods:
                    node.run(["ipvsadm", "-a", "-t", server, "-r", _place(pod.ip(family), TARGET), "-m"])
            self._restore(family, _ipvs_lines(family), _IPVS_JUMPS)

    def _restore(self, family: Family, lines: Iterator[str], jumps: Sequence[tuple[str, ...]]) -> None:
        node, program = self.cluster.lab.node, f"ip{'' if family == 4 else '6'}tables-{self.variant}"
        node.run([f"{program}-restore", "--noflush"], stdin="".join(f"{line}\n" for line in lines))
        for table, chain, target, comment in jumps:
            rule = [chain, "-m", "comment", "--comment", comment, "-j", target]
            if node.run([program, "-t", table, "-C", *rule], check=False).returncode:
                node.run([program, "-t", table, "-I", *rule])

    def _servers(self, family: Family) -> list[str]:
        """Its virtual servers: the cluster IP, and the node port at the node's first address."""
        own = (NODE_IP4 if family == 4 else NODE_IP6)[0]
        return [_place(self.service.ip(family), self.service.port), _place(own, self.service.node_port)]

    def _sets(self, family: Family) -> Iterator[str]:
        inet = "inet" if family == 4 else "inet6"
        for name, kind in _IPVS_SETS.items():
            rest = "range 0-65535" if kind == "bitmap:port" else f"family {inet} hashsize 1024 maxelem 65536"
            yield f"create {_set(name, family)} {kind} {rest}"
        ip = self.service.ip(family)
        yield f"add {_set('CLUSTER-IP', family)} {ip},tcp:{self.service.port}"
        yield f"add {_set('NODE-PORT-TCP', family)} {self.service.node_port}"
        yield f"add {_set('IPVS-IPS', family)} {ip}"
        for pod in self.pods:
            own = pod.ip(family)
            yield f"add {_set('LOOP-BACK', family)} {own},tcp:{TARGET},{own}"


def _iptables_lines(service: Service, pods: Sequence[Pod], family: Family) -> Iterator[str]:
    (port,) = service.ports
    name = f"{NAMESPACE}/{service.name}" + (f":{port.name}" if port.name else "")
    comment = f'-m comment --comment "{name}'
    chain, external = (f"KUBE-{kind}-{port_hash(name, 'tcp')}" for kind in ("SVC", "EXT"))
    host = "32" if family == 4 else "128"
    ips = [pod.ip(family) for pod in pods]
    places = [_place(ip, TARGET) for ip in ips]
    ends = [endpoint_chain(name, "tcp", place) for place in places]
    yield "*filter"
    yield from (f":KUBE-{each} - [0:0]" for each in ("SERVICES", "NODEPORTS", "FORWARD"))
    yield from (f":KUBE-{each} - [0:0]" for each in ("EXTERNAL-SERVICES", "PROXY-FIREWALL"))
    yield "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"
    yield from _FORWARD
    yield "COMMIT"
    yield "*nat"
    yield from (f":KUBE-{each} - [0:0]" for each in ("SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ"))
    yield from (f":{each} - [0:0]" for each in (chain, external, *ends))
    yield f'-A KUBE-NODEPORTS -p tcp {comment}" -m tcp --dport {service.node_port} -j {external}'
    yield f'-A {external} {comment} external" -j KUBE-MARK-MASQ'
    yield f"-A {external} -j {chain}"
    yield (
        f'-A KUBE-SERVICES -d {service.ip(family)}/{host} -p tcp {comment} cluster IP" '
        f"-m tcp --dport {port.number} -j {chain}"
    )
    yield "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    for number, (ip, place, end) in enumerate(zip(ips, places, ends, strict=True)):
        left = len(ips) - number
        match = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        yield f'-A {chain} {comment} -> {place}"{match} -j {end}'
        yield f'-A {end} -s {ip}/{host} {comment}" -j KUBE-MARK-MASQ'
        yield f'-A {end} -p tcp {comment}" -m tcp -j DNAT --to-destination {place}'
    yield from _MASQUERADE
    yield "COMMIT"


def _ipvs_lines(family: Family) -> Iterator[str]:
    def listed(name: str, fields: str) -> str:
        return f"-m set --match-set {_set(name, family)} {fields}"

    cluster_cidr = CLUSTER_CIDRS.split(",")[FAMILIES.index(family)]
    new_to_a_service = f"-m conntrack --ctstate NEW {listed('IPVS-IPS', 'dst')}"
    yield "*nat"
    yield from (f":KUBE-{each} - [0:0]" for each in _IPVS_CHAINS["nat"])
    yield f"-A KUBE-POSTROUTING {listed('LOOP-BACK', 'dst,dst,src')} -j MASQUERADE"
    yield f"-A KUBE-SERVICES {listed('LOAD-BALANCER', 'dst,dst')} -j KUBE-LOAD-BALANCER"
    yield f"-A KUBE-SERVICES ! -s {cluster_cidr} {listed('CLUSTER-IP', 'dst,dst')} -j KUBE-MARK-MASQ"
    yield "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT"
    yield f"-A KUBE-SERVICES {listed('CLUSTER-IP', 'dst,dst')} -j ACCEPT"
    yield f"-A KUBE-SERVICES {listed('LOAD-BALANCER', 'dst,dst')} -j ACCEPT"
    yield f"-A KUBE-NODE-PORT -p tcp {listed('NODE-PORT-LOCAL-TCP', 'dst')} -j RETURN"
    yield f"-A KUBE-NODE-PORT -p tcp {listed('NODE-PORT-TCP', 'dst')} -j KUBE-MARK-MASQ"
    yield "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ"
    yield from _MASQUERADE
    yield "COMMIT"
    yield "*filter"
    yield from (f":KUBE-{each} - [0:0]" for each in _IPVS_CHAINS["filter"])
    yield from _FORWARD
    yield f"-A KUBE-NODE-PORT {listed('HEALTH-CHECK-NODE-PORT', 'dst')} -j ACCEPT"
    for name in ("LOAD-BALANCER", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL"):
        yield f"-A KUBE-IPVS-FILTER {listed(name, 'dst,dst')} -j RETURN"
    yield f"-A KUBE-IPVS-FILTER {listed('HEALTH-CHECK-NODE-PORT', 'dst')} -j RETURN"
    yield f"-A KUBE-IPVS-FILTER {new_to_a_service} -j REJECT"
    for name in ("LOAD-BALANCER", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL"):
        yield f"-A KUBE-IPVS-OUT-FILTER {listed(name, 'dst,dst')} -j RETURN"
    yield f"-A KUBE-IPVS-OUT-FILTER {new_to_a_service} -j REJECT"
    yield "COMMIT"


def _set(name: str, family: Family) -> str:
    """The name of a set; the kernel's names have at most 31 characters."""
    return f"KUBE-{'' if family == 4 else '6-'}{name}"[:31]


def _place(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
