"""A grammar of the rules kproxy may write: whatever else stands in a line got there by injection.

Every line has to match one of the forms from end to end; addresses are re-parsed, ports range-checked.
"""

from __future__ import annotations

import ipaddress
import re

from kproxy.addresses import Family

_NAME = r"[a-z0-9][-a-z0-9.]*/[a-z0-9][-a-z0-9.]*(?::[a-z0-9][-a-z0-9]*)?"
_HASHED = r"[A-Z2-7]{16}"
_SERVICE_CHAIN = rf"KUBE-(?:SVC|SVL|EXT|FW)-{_HASHED}"
_ENDPOINT_CHAIN = rf"KUBE-SEP-{_HASHED}"
_PROTO = r"-p (?P<proto>tcp|udp|sctp) "
_DPORT = r"-m (?P=proto) --dport (?P<dport>[1-9][0-9]*) "
_HOST = r"(?P<host>[0-9a-f.:]+/(?:32|128))"
_NET = r"(?P<net>[0-9a-f.:]+/[0-9]+)"
_TEXT = r"(?P<to>(?:[0-9.]+|\[[0-9a-f:]+\]):[1-9][0-9]*)"
_COMMENT = r'-m comment --comment "{}" '
_RECENT = r"--mask (?:255\.255\.255\.255|(?:ffff:){7}ffff) --rsource "
_REJECT = r"(?:REJECT --reject-with icmp6?-port-unreachable|DROP)"


def _comment(text: str) -> str:
    return rf'-m comment --comment "{text}" '


_FORMS = [
    rf"-A KUBE-SERVICES -d {_HOST} {_PROTO}{_comment(_NAME + ' (?:cluster|external|loadbalancer) IP')}{_DPORT}"
    rf"-j {_SERVICE_CHAIN}",
    rf"-A KUBE-(?:EXTERNAL-)?SERVICES -d {_HOST} {_PROTO}{_comment(_NAME + ' has no (?:local )?endpoints')}{_DPORT}"
    rf"-j {_REJECT}",
    rf"-A KUBE-EXTERNAL-SERVICES {_PROTO}{_comment(_NAME + ' has no (?:local )?endpoints')}"
    rf"-m addrtype --dst-type LOCAL {_DPORT}-j {_REJECT}",
    rf"-A KUBE-PROXY-FIREWALL -d {_HOST} {_PROTO}"
    rf"{_comment(_NAME + ' traffic not accepted by KUBE-FW-' + _HASHED)}{_DPORT}-j DROP",
    rf"-A KUBE-NODEPORTS {_PROTO}{_comment(_NAME)}{_DPORT}-j KUBE-EXT-{_HASHED}",
    rf"-A KUBE-NODEPORTS -d 127\.0\.0\.0/8 {_PROTO}{_comment(_NAME)}{_DPORT}"
    rf"-m nfacct --nfacct-name  localhost_nps_accepted_pkts -j KUBE-EXT-{_HASHED}",
    rf"-A KUBE-NODEPORTS {_PROTO}{_comment(_NAME + ' health check node port')}{_DPORT}-j ACCEPT",
    rf"-A {_SERVICE_CHAIN} (?:! -s {_NET} )?-d {_HOST} (?:! -i [-a-z0-9]+\+? )?{_PROTO}"
    rf"{_comment(_NAME + ' cluster IP')}{_DPORT}-j KUBE-MARK-MASQ",
    rf"-A {_SERVICE_CHAIN} {_comment('masquerade (?:LOCAL )?traffic for ' + _NAME + ' external destinations')}"
    rf"(?:-m addrtype --src-type LOCAL )?-j KUBE-MARK-MASQ",
    rf"-A {_SERVICE_CHAIN} (?:-s {_NET} |-i [-a-z0-9]+\+? )"
    rf"{_comment('pod traffic for ' + _NAME + ' external destinations')}-j KUBE-SVC-{_HASHED}",
    rf"-A {_SERVICE_CHAIN} {_comment('route LOCAL traffic for ' + _NAME + ' external destinations')}"
    rf"-m addrtype --src-type LOCAL -j KUBE-SVC-{_HASHED}",
    rf"-A {_SERVICE_CHAIN} -j {_SERVICE_CHAIN}",
    rf"-A {_SERVICE_CHAIN} -s {_NET} {_comment(_NAME + ' loadbalancer IP')}-j KUBE-EXT-{_HASHED}",
    rf"-A {_SERVICE_CHAIN} {_comment('other traffic to ' + _NAME + ' will be dropped by KUBE-PROXY-FIREWALL')[:-1]}",
    rf"-A {_SERVICE_CHAIN} (?:{_comment(_NAME + ' -> ' + _TEXT)})?"
    rf"(?:-m recent --rcheck --seconds [1-9][0-9]* --reap --name {_ENDPOINT_CHAIN} {_RECENT}|"
    rf"-m statistic --mode random --probability 0\.[0-9]{{11}} )?-j {_ENDPOINT_CHAIN}",
    rf"-A {_ENDPOINT_CHAIN} -s {_HOST} (?:{_comment(_NAME)})?-j KUBE-MARK-MASQ",
    rf"-A {_ENDPOINT_CHAIN} {_PROTO}(?:{_comment(_NAME)})?(?:-m recent --set --name {_ENDPOINT_CHAIN} {_RECENT})?"
    rf"-m (?P=proto) -j DNAT --to-destination {_TEXT}",
]  # fmt: skip
_PATTERNS = [re.compile(form) for form in _FORMS]


def check(line: str, family: Family) -> None:
    """Fail unless the line (with its line feed) is one rule that a service may have."""
    assert line.endswith("\n")
    body = line[:-1]
    found = next((m for p in _PATTERNS if (m := p.fullmatch(body))), None)
    assert found is not None, f"no known form: {line!r}"
    groups = found.groupdict()
    version = 4 if family is Family.IPV4 else 6
    for name in ("host", "net"):
        text = groups.get(name)
        if text is not None:
            network = ipaddress.ip_network(text, strict=True)
            assert str(network) == text
            assert network.version == version
    if groups.get("dport") is not None:
        assert 0 < int(groups["dport"]) < 65536
    if groups.get("to") is not None:
        address, _, number = groups["to"].rpartition(":")
        assert ipaddress.ip_address(address.strip("[]")).version == version
        assert 0 < int(number) < 65536
