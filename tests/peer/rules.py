"""Compares the iptables-save output of kube-proxy with that of kproxy in the standard layout.

Packets show whether two rulesets are equivalent for the probes; operators and their tools read the rules
themselves. For a kube-proxy with the layout of 1.36 every chain is compared; for an older one the chains that
never changed: selection and translation of endpoints, and masquerading.
"""

import re
from collections.abc import Iterable, Mapping

from tests.peer.contenders import Version

Rules = Mapping[tuple[str, str], list[str]]
"""(table, chain) -> rules in order."""

LIKE_NOW: Version = (1, 33)
"""From this version on, kube-proxy's rules are those of 1.36."""

_SERVICES = ("nat", "KUBE-SERVICES")
_SHARED = {
    _SERVICES,
    ("nat", "KUBE-NODEPORTS"),
    ("filter", "KUBE-SERVICES"),
    ("filter", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-PROXY-FIREWALL"),
}
"""In these, kube-proxy's services stand in the order of a Go map."""
_OF_OTHERS = {"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP"}
_AGELESS = ("KUBE-SVC-", "KUBE-SEP-", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-PROXY-CANARY")
_COMMENT = re.compile(r'-m comment --comment "[^"]*" ?')


def parse(text: str) -> Rules:
    """Read what iptables-save prints: Kubernetes' chains, and what leads to them from others."""
    found: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":") and line.startswith(":KUBE-"):
            found.setdefault((table, line[1:].partition(" ")[0]), [])
        elif line.startswith("-A "):
            chain = line.split(" ", 2)[1]
            if chain.startswith("KUBE-") or " -j KUBE-" in line:
                found.setdefault((table, chain), []).append(line)
    return {place: rules for place, rules in found.items() if place[1] not in _OF_OTHERS}


def differences(kube_proxy: str, kproxy: str, version: Version) -> list[str]:
    """Compare two dumps, the first of a kube-proxy of this version; a line for each chain that differs."""
    expected, found = (_comparable(parse(text), version) for text in (kube_proxy, kproxy))
    return [
        f"{' '.join(place)}: kube-proxy {expected.get(place)}, kproxy {found.get(place)}"
        for place in sorted(expected.keys() | found.keys())
        if expected.get(place) != found.get(place)
    ]


def _comparable(rules: Rules, version: Version) -> Rules:
    if version < LIKE_NOW:
        return dict(_ageless(rules))
    return {
        place: [*sorted(lines[:-1]), *lines[-1:]]
        if place == _SERVICES
        else sorted(lines)
        if place in _SHARED
        else lines
        for place, lines in rules.items()
    }


def _ageless(rules: Rules) -> Iterable[tuple[tuple[str, str], list[str]]]:
    """Without comments, and without what older versions have in other chains."""
    for place, lines in rules.items():
        chain = place[1]
        if not chain.startswith(_AGELESS):
            continue
        masquerading = chain.startswith("KUBE-SVC-")
        yield (
            place,
            [
                _COMMENT.sub("", line)
                for line in lines
                if not (masquerading and line.endswith("-j KUBE-MARK-MASQ"))
            ],
        )
