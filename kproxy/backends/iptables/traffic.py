"""Traffic per service port, from the counters of the rules that match its frontends.

Table nat sees only the first packet of a connection, so its counters count those. The rules of the service's
own chains are not read: they change with every endpoint, the rules for frontends only with the addresses.
"""

import re
from collections import Counter
from collections.abc import Iterable

from kproxy.backends.core.base import PortTraffic
from kproxy.backends.iptables import names
from kproxy.backends.iptables.names import SERVICE_CHAIN_PREFIXES
from kproxy.kernel.xtables.legacy_counters import CountedRule

_OWN_CHAINS = tuple(prefix.encode() for prefix in SERVICE_CHAIN_PREFIXES)
_ROOTS = (names.KUBE_SERVICES, names.KUBE_NODEPORTS)
_PORT = re.compile(r"[^ ]+/[^ ]+")
_SERVED = re.compile(r"KUBE-(?:SVC|SVL|EXT|FW)-")
_LEADING = re.compile(
    rb"\[(\d+):(\d+)\] -A KUBE-\S+ .*?-p (tcp|udp|sctp) "
    rb'.*?--comment "([^ "]+/[^ "]+)[^"]*".* -j KUBE-(?:SVC|SVL|EXT|FW)-\S+'
)


def port_traffic(dump: bytes) -> tuple[PortTraffic, ...]:
    """Return the traffic of every service port with a rule in a dump of table nat with counters.

    It reads line by line, so that other threads can run while a big dump is parsed.
    """
    packets: Counter[tuple[bytes, bytes]] = Counter()
    sizes: Counter[tuple[bytes, bytes]] = Counter()
    for line in dump.splitlines():
        _, _, rule = line.partition(b"] -A ")
        if rule.startswith(_OWN_CHAINS) or (match := _LEADING.fullmatch(line)) is None:
            continue
        port = match[4], match[3]
        packets[port] += int(match[1])
        sizes[port] += int(match[2])
    return tuple(
        PortTraffic(name.decode(), protocol.decode().upper(), count, (count, sizes[name, protocol]))
        for (name, protocol), count in packets.items()
    )


class Chains:
    """The chains that a reader of single rules has to read: those that lead to services."""

    roots = _ROOTS

    @staticmethod
    def leads_on(chain: str) -> bool:
        """Whether a chain that one of them jumps to is to be read, too."""
        return chain.startswith("KUBE-") and not chain.startswith(SERVICE_CHAIN_PREFIXES)


def rule_traffic(rules: Iterable[CountedRule]) -> tuple[PortTraffic, ...]:
    """As `port_traffic`, from decoded rules."""
    packets: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for rule in rules:
        name = _PORT.match(rule.comment)
        if not rule.protocol or name is None or _SERVED.match(rule.target) is None:
            continue
        port = name[0], rule.protocol
        packets[port] += rule.packets
        sizes[port] += rule.size
    return tuple(
        PortTraffic(name, protocol.upper(), count, (count, sizes[name, protocol]))
        for (name, protocol), count in packets.items()
    )
