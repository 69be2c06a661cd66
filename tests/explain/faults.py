"""Kinds of faults in the kernel's rules: how each is planted, and what it does to which packet."""

from dataclasses import dataclass

from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import PacketVerdict
from kproxy.state.tables import ServiceInput
from tests.explain.world import Probe, given
from tests.peer.objects import Ep, served, service, slices
from tests.peer.objects import port as service_port

VIP, EMPTY, BALANCER = "10.96.1.1", "10.96.1.2", "203.0.113.60"
PLACES = ("local-0", "local-1", "remote-0")
ENDPOINTS = ("10.244.1.10:8080", "10.244.1.11:8080", "10.244.2.10:8080")


def objects() -> list[ServiceInput]:
    """A service with three endpoints, one with a single one at a load balancer, and one without."""
    ports = [served(8080, "web")]

    def made(name: str, ip: str, *places: str, **fields: object) -> ServiceInput:
        families = {"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP"} | fields
        ingress = families.pop("ingress", ())
        obj = service(name, service_port(80, "web"), ingress=ingress, **families)  # type: ignore[arg-type]
        return given(obj, slices(name, *map(Ep, places), ports=ports, families=(4,)))

    return [
        made("full", VIP, *PLACES),
        made("none", EMPTY),
        made(
            "one",
            "10.96.1.3",
            "local-0",
            type="LoadBalancer",
            ingress=[{"ip": BALANCER}],
            loadBalancerSourceRanges=["192.0.2.0/28"],
        ),
    ]


FROM_POD = Probe("local-2", "10.244.1.12", Protocol.TCP, VIP, 80)
FROM_CLIENT = Probe("client", "192.0.2.10", Protocol.TCP, VIP, 80)
TO_ITSELF = Probe("local-0", "10.244.1.10", Protocol.TCP, "10.96.1.3", 80)
TO_EMPTY = Probe("local-2", "10.244.1.12", Protocol.TCP, EMPTY, 80)
TO_BALANCER = Probe("client", "192.0.2.10", Protocol.TCP, BALANCER, 80)
FROM_NODE = Probe("node", "192.168.100.10", Protocol.TCP, VIP, 80)


@dataclass(frozen=True)
class Fault:
    """A fault: commands to plant it, the packet that shows it, and its effect.

    `verdict` and `endpoint` are of an outcome that a healthy node does not have, with its `share`; `rule` is
    a text in its steps or reason. `gone` names an endpoint that is not reached any more instead.
    """

    name: str
    commands: tuple[str, ...]
    probe: Probe
    verdict: PacketVerdict
    rule: str = ""
    endpoint: str | None = None
    share: float = 1.0
    masquerade: bool | None = None


FORWARD, DROP, REJECT = PacketVerdict.FORWARD, PacketVerdict.DROP, PacketVerdict.REJECT
PASS, UNKNOWN = PacketVerdict.UNTOUCHED, PacketVerdict.UNKNOWN
_KEY = f"{VIP} . 6 . 80"
_FOREIGN = "nft add table ip other"
_AT = "nft add chain ip other c {{ type {} hook {} priority {} ; }}"
_RULE = "nft add rule ip other c "

NFTABLES = (
    Fault(
        "an endpoint changed",
        (
            f"nft delete element ip kproxy endpoint-0 {{ {_KEY} }}",
            f"nft add element ip kproxy endpoint-0 {{ {_KEY} : 10.244.2.11 . 1 }}",
        ),
        FROM_POD,
        FORWARD,
        "map @endpoint-0",
        "10.244.2.11:1",
        1 / 3,
    ),
    Fault(
        "an element of the services lost",
        (f"nft delete element ip kproxy services {{ {_KEY} }}",),
        FROM_POD,
        REJECT,
        "@cluster-ips",
    ),
    Fault(
        "a hairpin element lost",
        ("nft delete element ip kproxy hairpin { 10.244.1.10 . 10.244.1.10 . 6 . 8080 }",),
        TO_ITSELF,
        FORWARD,
        "map @endpoint-0",
        ENDPOINTS[0],
        masquerade=False,
    ),
    Fault(
        "a foreign drop before ours",
        (_FOREIGN, _AT.format("filter", "prerouting", -150), _RULE + f"ip daddr {VIP} drop"),
        FROM_POD,
        DROP,
        f"ip other c: ip daddr {VIP} drop",
    ),
    Fault(
        "a foreign policy",
        (_FOREIGN, "nft add chain ip other c { type filter hook forward priority 5 ; policy drop ; }"),
        FROM_POD,
        DROP,
        "ip other c: policy drop",
    ),
    Fault(
        "a numbered endpoint lost",
        (f"nft delete element ip kproxy %endpoints-3 {{ {_KEY} . 1 }}",),
        FROM_POD,
        FORWARD,
        "map @endpoint-0",
        ENDPOINTS[0],
        2 / 3,
    ),
    Fault(
        "a class chain emptied",
        ("nft flush chain ip kproxy %cluster-all-3",),
        FROM_POD,
        REJECT,
        "@cluster-ips",
    ),
    Fault(
        "the masquerade rules gone",
        ("nft flush chain ip kproxy nat-postrouting",),
        FROM_CLIENT,
        FORWARD,
        "vmap @services",
        ENDPOINTS[1],
        1 / 3,
        masquerade=False,
    ),
    Fault(
        "a refusal lost",
        (
            f"nft delete element ip kproxy refusals {{ {EMPTY} . 6 . 80 }}",
            "nft flush set ip kproxy cluster-ips",
        ),
        TO_EMPTY,
        PASS,
    ),
    Fault(
        "a refusal planted",
        ("nft add element ip kproxy refusals { 10.244.1.11 . 6 . 8080 : goto refuse }",),
        FROM_POD,
        REJECT,
        "vmap @refusals -> goto refuse",
        share=1 / 3,
    ),
    Fault(
        "a foreign translation before ours",
        (
            _FOREIGN,
            _AT.format("nat", "prerouting", -110),
            _RULE + f"ip daddr {VIP} tcp dport 80 dnat to 10.244.1.12:9",
        ),
        FROM_CLIENT,
        FORWARD,
        "dnat to 10.244.1.12:9",
        "10.244.1.12:9",
    ),
    Fault(
        "no tracking",
        (
            _FOREIGN,
            _AT.format("filter", "prerouting", -300),
            _RULE + f"ip daddr {VIP} notrack",
        ),
        FROM_POD,
        PASS,
        "notrack",
    ),
    Fault(
        "a match that is not modelled",
        (_FOREIGN, _AT.format("filter", "forward", 0), _RULE + "ip dscp 0x10 drop"),
        FROM_POD,
        UNKNOWN,
        "ip other c: ",
    ),
    Fault(
        "a source range lost",
        ("nft flush set ip kproxy %ranges-",),
        TO_BALANCER,
        DROP,
        "drop",
    ),
    Fault(
        "the table switched off",
        ("nft add table ip kproxy { flags dormant ; }",),
        FROM_POD,
        PASS,
    ),
    Fault(
        "a foreign refusal after translation",
        (_FOREIGN, _AT.format("filter", "forward", -5), _RULE + "tcp dport 8080 reject"),
        FROM_POD,
        REJECT,
        "ip other c: ",
    ),
    Fault(
        "the output chain emptied",
        ("nft flush chain ip kproxy nat-output",),
        FROM_NODE,
        REJECT,
        "@cluster-ips",
    ),
)

_WRITE = "{iptables} "


def _iptables(text: str) -> str:
    return _WRITE + text


IPTABLES = (
    Fault(
        "an endpoint rule changed",
        (
            _iptables(
                "-t nat -R %SEP:10.244.1.11:8080 2 -p tcp -m tcp -j DNAT --to-destination 10.244.2.11:1"
            ),
        ),
        FROM_POD,
        FORWARD,
        "DNAT --to-destination 10.244.2.11:1",
        "10.244.2.11:1",
        1 / 3,
    ),
    Fault(
        "a service's jump missing",
        (_iptables(f"-t nat -D KUBE-SERVICES %RULE:{VIP}"),),
        FROM_POD,
        PASS,
    ),
    Fault(
        "the jump from PREROUTING missing",
        (_iptables("-t nat -F PREROUTING"),),
        FROM_CLIENT,
        PASS,
    ),
    Fault(
        "a foreign drop first",
        (_iptables("-I FORWARD -p tcp --dport 8080 -j DROP"),),
        FROM_POD,
        DROP,
        "filter FORWARD: -p tcp",
    ),
    Fault("a policy", (_iptables("-P FORWARD DROP"),), FROM_POD, DROP, "filter FORWARD: policy DROP"),
    Fault(
        "a drop in mangle",
        (_iptables("-t mangle -A PREROUTING -m multiport -p tcp --dports 79:81,443 -j DROP"),),
        FROM_POD,
        DROP,
        "mangle PREROUTING: ",
    ),
    Fault(
        "the masquerade rule missing",
        (_iptables("-t nat -F KUBE-POSTROUTING"),),
        FROM_CLIENT,
        FORWARD,
        "KUBE-SERVICES",
        ENDPOINTS[1],
        1 / 3,
        masquerade=False,
    ),
    Fault(
        "the mark rule missing",
        (_iptables("-t nat -F KUBE-MARK-MASQ"),),
        FROM_CLIENT,
        FORWARD,
        "KUBE-MARK-MASQ",
        ENDPOINTS[1],
        1 / 3,
        masquerade=False,
    ),
    Fault(
        "a share changed",
        (
            _iptables(
                "-t nat -R %SVC 2 -m statistic --mode random --probability 0.9 -j %SEP:10.244.1.10:8080"
            ),
        ),
        FROM_POD,
        FORWARD,
        "--probability 0.8999",
        ENDPOINTS[0],
        0.9,
    ),
    Fault(
        "a foreign translation first",
        (
            _iptables(
                f"-t nat -I PREROUTING -d {VIP} -p tcp --dport 80 -j DNAT --to-destination 10.244.1.12:9"
            ),
        ),
        FROM_CLIENT,
        FORWARD,
        "nat PREROUTING: ",
        "10.244.1.12:9",
    ),
    Fault("a return first", (_iptables("-t nat -I KUBE-SERVICES -j RETURN"),), FROM_POD, PASS),
    Fault(
        "no tracking",
        (_iptables(f"-t raw -A PREROUTING -d {VIP} -j CT --notrack"),),
        FROM_POD,
        PASS,
        "CT --notrack",
    ),
    Fault(
        "a match that is not modelled",
        (_iptables("-I FORWARD -m length --length 0:100 -j DROP"),),
        FROM_POD,
        UNKNOWN,
        "filter FORWARD: -m length --length 0:100 -j DROP",
    ),
    Fault(
        "a refusal missing",
        (_iptables("-F FORWARD"),),
        TO_EMPTY,
        PASS,
    ),
    Fault(
        "a source range missing",
        (_iptables("-t nat -D %FW 1"),),
        TO_BALANCER,
        DROP,
        "KUBE-PROXY-FIREWALL",
    ),
    Fault(
        "an endpoint's chain emptied",
        (_iptables("-t nat -F %SEP:10.244.1.11:8080"),),
        FROM_POD,
        FORWARD,
        "KUBE-SVC",
        ENDPOINTS[2],
        2 / 3,
    ),
    Fault("the jump from OUTPUT missing", (_iptables("-t nat -F OUTPUT"),), FROM_NODE, PASS),
    Fault(
        "a packet sent to the node itself",
        (_iptables(f"-t nat -I PREROUTING -d {VIP} -p tcp -j REDIRECT --to-ports 7"),),
        FROM_CLIENT,
        FORWARD,
        "REDIRECT --to-ports 7",
        "192.168.100.10:7",
    ),
)

MIXED = (
    Fault(
        "a rule written with nft in a table of iptables",
        ("nft insert rule ip filter FORWARD ip daddr { 10.244.1.10, 10.244.1.11 } drop",),
        FROM_CLIENT,
        DROP,
        "ip filter FORWARD: ip daddr { ... } drop",
        share=2 / 3,
    ),
    Fault(
        "a jump written with nft to a chain of iptables",
        (
            "iptables-nft -N FOREIGN",
            "iptables-nft -A FOREIGN -m addrtype --dst-type UNICAST -j REJECT",
            "iptables-nft -A FOREIGN -p tcp --dport 1 -j ACCEPT",
            "nft insert rule ip filter FORWARD ct state new tcp dport { 9, 8080 } jump FOREIGN",
        ),
        FROM_POD,
        REJECT,
        "ip filter FOREIGN: fib daddr type unicast counter reject",
    ),
)

_SERVER = f"-t {VIP}:80"
IPVS = (
    Fault(
        "a destination replaced",
        (
            f"ipvsadm -d {_SERVER} -r 10.244.1.11:8080",
            f"ipvsadm -a {_SERVER} -r 10.244.2.11:1 -m -w 1",
        ),
        FROM_POD,
        FORWARD,
        f"ipvs: TCP {VIP}:80 rr -> 10.244.2.11:1 weight 1",
        "10.244.2.11:1",
        1 / 3,
    ),
    Fault("a virtual server lost", (f"ipvsadm -D {_SERVER}",), FROM_CLIENT, PASS, "KPROXY-CLUSTER-IP"),
    Fault(
        "weights of zero",
        tuple(f"ipvsadm -e {_SERVER} -r {endpoint} -m -w 0" for endpoint in ENDPOINTS),
        FROM_CLIENT,
        REJECT,
        f"ipvs: TCP {VIP}:80 rr: no destination of weight",
    ),
    Fault(
        "a hairpin entry lost",
        ("ipset del KPROXY-LOOP-BACK 10.244.1.10,tcp:8080,10.244.1.10",),
        TO_ITSELF,
        FORWARD,
        "ipvs: ",
        ENDPOINTS[0],
        masquerade=False,
    ),
    Fault(
        "an entry of the cluster IPs lost",
        (f"ipset del KPROXY-CLUSTER-IP {VIP},tcp:80",),
        FROM_POD,
        REJECT,
        "KUBE-IPVS-FILTER",
    ),
    Fault(
        "a foreign drop behind IPVS",
        ("iptables-legacy -I OUTPUT -d 10.244.1.0/24 -p tcp -j DROP",),
        FROM_CLIENT,
        DROP,
        "filter OUTPUT: -d 10.244.1.0/24 -p tcp -j DROP",
        share=2 / 3,
    ),
)
