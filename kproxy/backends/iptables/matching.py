"""Whether a packet matches a rule of iptables: yes, no, with a probability, or not known.

The meanings are those of the kernel's net/netfilter/xt_*.c. A match that is not listed here is not known.
"""

import ipaddress
from collections.abc import Callable, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.packets import NUMBERS, Flow, SharedRules
from kproxy.backends.iptables.hairpin import hairpin_match
from kproxy.backends.iptables.parsed import Condition, Rule
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import Routing

Contains = Callable[[Flow, str, Sequence[str]], bool | None]
"""Whether a set (by name) has a packet's addresses and ports (`src`, `dst`); None if that is not known."""

_ALL = 0xFFFFFFFF
_ALWAYS = frozenset({"comment", "nfacct"})
_NUMBER_OF = {"all": 0, "icmp": 1, "ipv6-icmp": 58, **{p.value.lower(): n for p, n in NUMBERS.items()}}
_TRACKED = frozenset({"conntrack", "connmark"})
_STATES = frozenset({"--ctstate", "--state"})
_PROTOCOL_MODULES = frozenset({"tcp", "udp", "sctp", "dccp", "udplite"})


class Surroundings(msgspec.Struct, frozen=True):
    """What matches look at beside the packet.

    `recent`: seconds since each client was seen, by list and address. `contains` looks up sets. `shared` runs
    rules that were written with nft.
    """

    family: Family
    recent: Mapping[str, Mapping[str, float]]
    contains: Contains
    shared: SharedRules


def probability(rule: Rule, flow: Flow, around: Surroundings, routing: Routing) -> float | None:
    """The probability that a rule matches; None if that depends on a match that is not modelled."""
    known = True
    share = 1.0
    for condition in rule.conditions:
        if condition.option == "-m":
            continue
        if flow.untracked and condition.module in _TRACKED and condition.option not in _STATES:
            return 0.0  # negated or not: xt_conntrack.c and xt_connmark.c look for a connection first
        found = _matches(condition, rule, flow, around, routing)
        if found is None:
            known = False
        elif isinstance(found, float):
            share *= 1 - found if condition.negated else found
        elif found == condition.negated:
            return 0.0
    return share if known else None


def _matches(
    condition: Condition, rule: Rule, flow: Flow, around: Surroundings, routing: Routing
) -> bool | float | None:
    value = condition.values[0] if condition.values else ""
    match condition.option, condition.module:
        case "-s", _:
            return _within(flow.source, value)
        case "-d", _:
            return _within(flow.destination, value)
        case "-i", _:
            return _named(flow.incoming, value)
        case "-o", _:
            return _named(flow.outgoing, value)
        case "-p", _:
            return value in {"all", "0"} or _NUMBER_OF.get(value, value) == NUMBERS[flow.protocol]
        case (("--dport" | "--sport"), module) if module in _PROTOCOL_MODULES:
            return _port(flow, condition.option, value)
        case (("--dports" | "--sports" | "--ports"), _):
            return _ports(flow, condition.option, value)
        case "--tcp-flags", _:
            return _syn(condition.values)
        case _, module if module in _ALWAYS:
            return True
        case (("--ctstate" | "--state"), _):
            return bool(_states(flow) & set(value.split(",")))
        case "--ctdir", _:
            return value == "ORIGINAL"
        case "--mark", "mark":
            return _marked(flow.mark, value)
        case "--mark", "connmark":
            return _marked(flow.connection_mark, value)
        case (("--src-type" | "--dst-type"), _):
            return _typed(
                flow.source if condition.option == "--src-type" else flow.destination, value, routing
            )
        case _, "statistic":
            return _chance(condition)
        case _, "recent":
            return _recent(condition, rule, flow, around)
        case "--bytecode", _:
            known = value in hairpin_match(around.family)
            return flow.source == flow.destination if known and flow.source else None
        case "--match-set", _:
            return around.contains(flow, value, condition.values[1].split(","))
        case _, "limit":
            return True
        case _, "hashlimit":
            return condition.option != "--hashlimit-above"
        case _, "rpfilter":
            return _answered(rule, flow, routing) if condition == _first_of(rule, "rpfilter") else True
        case "--physdev-is-bridged", _:
            return False
        case "--pkt-type", _:
            return value == "unicast"
        case (("--src-range" | "--dst-range"), _):
            return _between(flow.source if condition.option == "--src-range" else flow.destination, value)
        case "--pol", _:
            return True if value == "none" else None
        case "--dir", "policy":
            return True
    return None


def _within(address: str, network: str) -> bool | None:
    if not address:
        return None
    return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)


def _between(address: str, value: str) -> bool | None:
    if not address:
        return None
    first, _, last = value.partition("-")
    return (
        int(ipaddress.ip_address(first))
        <= int(ipaddress.ip_address(address))
        <= int(ipaddress.ip_address(last or first))
    )


def _named(device: str | None, pattern: str) -> bool | None:
    if pattern == "+":
        return True
    if device is None:
        return None
    return device.startswith(pattern[:-1]) if pattern.endswith("+") else device == pattern


def _port(flow: Flow, option: str, value: str) -> bool | None:
    number = flow.port if option == "--dport" else flow.source_port
    if option == "--sport" and not number:
        return None
    first, colon, last = value.partition(":")
    return int(first or 0) <= number <= int((last or 65535) if colon else first)


def _ports(flow: Flow, option: str, value: str) -> bool | None:
    parts = value.split(",")
    if option != "--sports" and any(_port(flow, "--dport", part) for part in parts):
        return True
    if option == "--dports":
        return False
    found = [_port(flow, "--sport", part) for part in parts]
    return True if True in found else None if None in found else False


def _syn(values: Sequence[str]) -> bool:
    """Whether the first packet of a TCP connection has these of the flags in the mask."""
    mask, flags = (set(each.split(",")) for each in values[:2])
    return ({"SYN"} & mask if "ALL" not in mask else {"SYN"}) == flags - {"NONE"}


def _states(flow: Flow) -> set[str]:
    if flow.untracked:
        return {"UNTRACKED"}
    found = {"NEW"}
    if flow.translated and not flow.scheduled:  # IPVS does not set the connection's status
        found.add("DNAT")
    return found | ({"SNAT"} if flow.masqueraded else set())


def _marked(mark: int, value: str) -> bool:
    number, _, mask = value.partition("/")
    return mark & (int(mask, 0) if mask else _ALL) == int(number, 0)


def _typed(address: str, value: str, routing: Routing) -> bool | None:
    if not address:
        return None
    kind = "LOCAL" if routing.is_local(address) else "UNICAST"
    return kind in value.split(",")


def _chance(condition: Condition) -> float | bool | None:
    if condition.option == "--probability":
        return float(condition.values[0])
    if condition.option == "--every":
        return 1 / int(condition.values[0])
    return True if condition.option in {"--mode", "--packet"} else None


def _recent(condition: Condition, rule: Rule, flow: Flow, around: Surroundings) -> bool | None:
    """Whether a client is in a list; all options count at once, with that of the operation."""
    if condition.option not in {"--rcheck", "--update", "--remove"}:
        return None if condition.option in {"--hitcount", "--rttl"} else True
    held = {each.option: each.values for each in rule.conditions if each.module == "recent"}
    if "--rdest" in held or not flow.source:
        return None
    seen = around.recent.get(held.get("--name", ("DEFAULT",))[0], {}).get(flow.source)
    if seen is None:
        return False
    seconds = held.get("--seconds")
    return seconds is None or seen <= float(seconds[0])


def _first_of(rule: Rule, module: str) -> Condition:
    return next(each for each in rule.conditions if each.module == module and each.option != "-m")


def _answered(rule: Rule, flow: Flow, routing: Routing) -> bool | None:
    """Whether answers leave through the device that the packet came from (match rpfilter)."""
    options = {each.option for each in rule.conditions if each.module == "rpfilter"}
    if flow.incoming is None or not flow.source:
        return None
    route = routing.route(flow.source)
    passes = flow.incoming == "" or (
        route is not None and ("--loose" in options or route.interface in {flow.incoming, ""})
    )
    return passes != ("--invert" in options)


def is_for(protocol: Protocol, rule: Rule) -> bool:
    """Whether a rule names this protocol."""
    return any(each.option == "-p" and each.values == (protocol.value.lower(),) for each in rule.conditions)
