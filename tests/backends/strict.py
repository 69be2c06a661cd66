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
_MASK = r"--mask (?:255\.255\.255\.255|(?:ffff:){7}ffff) --rsource"
_RECENT = rf"-m recent --rcheck --seconds [1-9][0-9]* --reap --name {_ENDPOINT_CHAIN} {_MASK}"
_SET = rf"-m recent --set --name {_ENDPOINT_CHAIN} {_MASK}"
_SHARE = r"-m statistic --mode random --probability 0\.[0-9]{11}"
_REFUSAL = r"(?:REJECT --reject-with icmp6?-port-unreachable|DROP)"
_NONE = r"has no (?:local )?endpoints"
_KIND = r"(?:cluster|external|loadbalancer)"
_LINK = r"[-a-z0-9]+\+?"
_COUNTED = r"-m nfacct --nfacct-name  localhost_nps_accepted_pkts "
_FROM_NODE = r"-m addrtype --src-type LOCAL "
_MASQUERADE = r"-j KUBE-MARK-MASQ"
_SVC, _EXT, _FW = (f"KUBE-{kind}-{_HASHED}" for kind in ("SVC", "EXT", "FW"))
_TO_SERVICE = rf"-j {_SERVICE_CHAIN}"
_OWN = rf"-A {_SERVICE_CHAIN} "
_TOLD = r"-m comment --comment \""
_SPN = _TOLD + _NAME
_FORMS = [
    # shared chains
    rf"-A KUBE-SERVICES -d {_HOST} {_PROTO}{_SPN} {_KIND} IP\" {_DPORT}{_TO_SERVICE}",
    rf"-A KUBE-(?:EXTERNAL-)?SERVICES -d {_HOST} {_PROTO}{_SPN} {_NONE}\" {_DPORT}-j {_REFUSAL}",
    rf"-A KUBE-EXTERNAL-SERVICES {_PROTO}{_SPN} {_NONE}\" -m addrtype --dst-type LOCAL {_DPORT}-j {_REFUSAL}",
    rf"-A KUBE-PROXY-FIREWALL -d {_HOST} {_PROTO}{_SPN} traffic not accepted by {_FW}\" {_DPORT}-j DROP",
    rf"-A KUBE-NODEPORTS {_PROTO}{_SPN}\" {_DPORT}-j {_EXT}",
    rf"-A KUBE-NODEPORTS -d 127\.0\.0\.0/8 {_PROTO}{_SPN}\" {_DPORT}{_COUNTED}-j {_EXT}",
    rf"-A KUBE-NODEPORTS {_PROTO}{_SPN} health check node port\" {_DPORT}-j ACCEPT",
    # a service's own chains
    rf"{_OWN}(?:! -s {_NET} )?-d {_HOST} (?:! -i {_LINK} )?{_PROTO}{_SPN} cluster IP\" {_DPORT}{_MASQUERADE}",
    rf"{_OWN}{_TOLD}masquerade traffic for {_NAME} external destinations\" {_MASQUERADE}",
    rf"{_OWN}{_TOLD}masquerade LOCAL traffic for {_NAME} external destinations\" {_FROM_NODE}{_MASQUERADE}",
    rf"{_OWN}(?:-s {_NET}|-i {_LINK}) {_TOLD}pod traffic for {_NAME} external destinations\" -j {_SVC}",
    rf"{_OWN}{_TOLD}route LOCAL traffic for {_NAME} external destinations\" {_FROM_NODE}-j {_SVC}",
    rf"{_OWN}{_TO_SERVICE}",
    rf"{_OWN}-s {_NET} {_SPN} loadbalancer IP\" -j {_EXT}",
    rf"{_OWN}{_TOLD}other traffic to {_NAME} will be dropped by KUBE-PROXY-FIREWALL\"",
    rf"{_OWN}(?:{_SPN} -> {_TEXT}\" )?(?:{_RECENT} |{_SHARE} )?-j {_ENDPOINT_CHAIN}",
    # an endpoint's chain
    rf"-A {_ENDPOINT_CHAIN} -s {_HOST} (?:{_SPN}\" )?{_MASQUERADE}",
    rf"-A {_ENDPOINT_CHAIN} {_PROTO}(?:{_SPN}\" )?(?:{_SET} )?-m (?P=proto) -j DNAT --to-destination {_TEXT}",
]
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
