"""Traffic per service port, read off the counters of the rules that lead to it.

Table nat sees the first packet of a connection only, so that is what its counters count. The rules that match
a frontend are counted, not those of the service's own chains: they change when a service's addresses do, and
not with every endpoint.
"""

import re
from collections import Counter

from kproxy.backends.base import PortTraffic
from kproxy.backends.iptables.names import SERVICE_CHAIN_PREFIXES

_OWN_CHAINS = tuple(prefix.encode() for prefix in SERVICE_CHAIN_PREFIXES)
_LEADING = re.compile(
    rb"\[(\d+):(\d+)\] -A KUBE-\S+ .*?-p (tcp|udp|sctp) "
    rb'.*?--comment "([^ "]+/[^ "]+)[^"]*".* -j KUBE-(?:SVC|SVL|EXT|FW)-\S+'
)


def port_traffic(dump: bytes) -> tuple[PortTraffic, ...]:
    """The traffic of every service port that has a rule in a dump of table nat with counters.

    Goes line by line, so that other threads get their turn while a big dump is read.
    """
    packets: Counter[tuple[bytes, bytes]] = Counter()
    octets: Counter[tuple[bytes, bytes]] = Counter()
    for line in dump.splitlines():
        _, _, rule = line.partition(b"] -A ")
        if rule.startswith(_OWN_CHAINS) or (match := _LEADING.fullmatch(line)) is None:
            continue
        port = match[4], match[3]
        packets[port] += int(match[1])
        octets[port] += int(match[2])
    return tuple(
        PortTraffic(name.decode(), protocol.decode().upper(), count, (count, octets[name, protocol]))
        for (name, protocol), count in packets.items()
    )
