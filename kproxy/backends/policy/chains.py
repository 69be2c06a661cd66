"""The chains that depend on no policy: where packets are judged, and where refused ones end.

A new connection is judged at both of its ends: the chain of the source's group returns if it allows it, then
that of the destination's group accepts. Everything else that a group gets is refused. Replies and related
ICMP errors pass before that, and so do IPv6's neighbour and multicast listener discovery (RFC 4861, 3810).
Packets that connection tracking does not know, or calls invalid, are judged as if they were new.

Packets are seen at three hooks, in every proxy mode alike:

- forward, after the translation of services and before other filters;
- input, behind all filters and behind the kernel's virtual servers, which take the packets for services
  there: what is left is for the node itself;
- output, for packets that a virtual server sends on to a pod; the node's own have a local source and pass.

A refused flow is written to the kernel's log once, while a set (drops-DIRECTION) remembers it.
"""

from collections.abc import Iterator

import msgspec

from kproxy.backends.policy import names
from kproxy.backends.policy.config import PolicyConfig, Unknown
from kproxy.plan.model import Protocol

Chain = tuple[str, ...]
"""Rules, as nft reads them."""

BEFORE_FILTERS = -5
AFTER_SERVICES = 110
"""Priority of the input hook: virtual servers have 98 and 99 there (ip_vs_core.c of the kernel)."""

LOG_RATE, LOG_BURST = 25, 50
"""New refused flows of a group that are logged, in a second and at once."""

_DISCOVERY = (
    "meta l4proto 58 icmpv6 type 133-137 ip6 hoplimit 255 accept",
    "meta l4proto 58 icmpv6 type 130-132 ip6 daddr ff00::/8 accept",
    "meta l4proto 58 icmpv6 type 143 ip6 daddr ff00::/8 accept",
)
"""Router and neighbour discovery and redirects; listener queries, reports and done messages; MLDv2 reports.

A router takes one from the hop limit, so what comes from another link is none (RFC 4861, 6.1 and 7.1), and
listeners are asked and answer by multicast (RFC 3810). Otherwise these types would lead out of every pod.
"""


_LINK_LOCAL = "link-local"
"""The chain for addresses of a link, which a pod has beside its own and which are in no map.

Such packets reach the forward hook between ports of a bridge only; without it, two isolated pods of one
bridge could talk by these addresses. DHCPv6 passes, for other programs' bridges may be filtered, too.
"""


class BaseChain(msgspec.Struct, frozen=True):
    """A base chain: its hook and priority, and its rules."""

    hook: str
    rules: Chain


def base_chains(config: PolicyConfig) -> dict[str, BaseChain]:
    """The base chains, by name."""
    ip = config.ip
    pass_first = ("ct state established,related accept", *(_DISCOVERY if ip == "ip6" else ()))
    answers = tuple(_answers(ip))
    unknown_source = tuple(_unknown(config, "saddr"))
    unknown = (*unknown_source, *_unknown(config, "daddr"))
    egress = f"{ip} saddr vmap @{names.EGRESS}"
    both = (*unknown, egress, f"{ip} daddr vmap @{names.INGRESS}")
    links = [f"ip6 {side} fe80::/10 goto {_LINK_LOCAL}" for side in ("saddr", "daddr") if ip == "ip6"]
    return {
        "forward": BaseChain(
            f"type filter hook forward priority {BEFORE_FILTERS};",
            (*pass_first, *links, *answers, *both),
        ),
        "input": BaseChain(
            f"type filter hook input priority {AFTER_SERVICES};",
            (*pass_first, *answers, *unknown_source, egress),
        ),
        "output": BaseChain(
            f"type filter hook output priority {BEFORE_FILTERS};",
            (*pass_first, "fib saddr type local accept", *both),
        ),
    }


def fixed_chains(config: PolicyConfig) -> dict[str, Chain]:
    """The other chains that do not depend on policies, by name."""
    found: dict[str, Chain] = {names.LAYOUT: ()}
    if config.ip == "ip6":
        found[_LINK_LOCAL] = ("meta l4proto 17 th dport 546-547 accept", "counter", _refuse(config))
    for direction in (names.EGRESS, names.INGRESS):
        found |= _refused(config, direction)
    if config.ranges:
        if config.unknown is Unknown.DROP:
            found |= _refused(config, names.UNKNOWN)
        found[names.UNKNOWN] = ("fib saddr type local return", *_of_unknown(config))
    return found


def fixed_containers(config: PolicyConfig) -> dict[str, dict[str, str]]:
    """The maps and sets that always exist, with the elements that do not depend on policies."""
    transports = dict.fromkeys(map(str, names.PROTOCOL_NUMBERS.values()), "")
    found: dict[str, dict[str, str]] = {names.EGRESS: {}, names.INGRESS: {}}
    found |= {names.drops(names.EGRESS): {}, names.drops(names.INGRESS): {}}
    found |= {names.TRANSPORTS: transports, names.ENDED: {}, names.ENDED_DATAGRAMS: {}}
    if config.ranges:
        found[names.KNOWN] = {}
        if config.unknown is Unknown.DROP:
            found[names.drops(names.UNKNOWN)] = {}
    return found


def refusal(config: PolicyConfig, direction: str, name: str) -> Chain:
    """The last rules of a group: count the packet, log a new flow under a name, and refuse."""
    log = f'log prefix "{name}" group {config.nflog_group}'
    return (
        f"counter jump refused-{direction}",
        f"limit rate {LOG_RATE}/second burst {LOG_BURST} packets {log}",
        _refuse(config),
    )


def _refuse(config: PolicyConfig) -> str:
    return "reject" if config.reject else "drop"


def _refused(config: PolicyConfig, direction: str) -> dict[str, Chain]:
    """The chain that ends the way of packets of a known refused flow, and returns for a new one.

    If the set is full, the flow counts as new each time. A look-up counts the packet, too, so of a known flow
    each packet is counted twice.
    """
    first = f"refused-{direction}"
    ports = f"{first}-ports"
    return {
        ports: _known(config, direction, "dport"),
        first: (f"meta l4proto @{names.TRANSPORTS} goto {ports}", *_known(config, direction, "sport")),
    }


def _known(config: PolicyConfig, direction: str, port: str) -> Chain:
    ip, drops = config.ip, names.drops(direction)
    flow = f"{ip} saddr . {ip} daddr . meta l4proto . th {port}"
    update = f"update @{drops} {{ {flow} }}"
    return f"{flow} @{drops} {update} {_refuse(config)}", update


def _answers(ip: str) -> Iterator[str]:
    """Refuse what looks like a new connection and is an answer of one that was ended (ended.py)."""
    flow = f"{ip} saddr . th sport . {ip} daddr . th dport . meta l4proto"
    datagrams = names.PROTOCOL_NUMBERS[Protocol.UDP]
    yield f"meta l4proto {datagrams} {flow} @{names.ENDED_DATAGRAMS} drop"
    yield f"{flow} @{names.ENDED} drop"


def _unknown(config: PolicyConfig, side: str) -> Iterator[str]:
    for cidr in config.ranges:
        yield f"{config.ip} {side} {cidr} {config.ip} {side} != @{names.KNOWN} jump {names.UNKNOWN}"


def _of_unknown(config: PolicyConfig) -> Chain:
    if config.unknown is Unknown.DROP:
        return refusal(config, names.UNKNOWN, names.UNKNOWN)
    queue = "NFQUEUE" if config.queue_by_target else "queue"
    return f"ct state new {queue} num {config.queue}", "counter", "drop"
