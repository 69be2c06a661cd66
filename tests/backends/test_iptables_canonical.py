"""The form iptables-save prints, for every kind of rule; and spellings that are the same rule."""

# ruff: noqa: E501, ISC004, Q003  (rules are data here and are kept in one piece)

from __future__ import annotations

import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.iptables.canonical import canonical_rule, probability, tokenize
from kproxy.backends.iptables.dump import parse_save
from kproxy.kernel import nfacct
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant, XtablesUnavailable
from tests.kernel.namespace import fresh_network

SVC, SVL, EXT, FW = (f"KUBE-{kind}-XPGD46QRK7WJZT7O" for kind in ("SVC", "SVL", "EXT", "FW"))
SEP = "KUBE-SEP-SXIVWICOYRO3J4NJ"

VALUES = {
    Family.IPV4: {
        "cip": "10.96.0.1/32", "ep": "10.180.0.1:80", "epip": "10.180.0.1", "host": "/32", "range": "192.0.2.0/24",
        "mask": "255.255.255.255", "reject": "icmp-port-unreachable", "set": "KUBE-LOOP-BACK",
    },
    Family.IPV6: {
        "cip": "fd00:10:96::1/128", "ep": "[fd00:10:180::1]:80", "epip": "fd00:10:180::1", "host": "/128",
        "range": "2001:db8::/32", "mask": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "reject": "icmp6-port-unreachable", "set": "KUBE-6-LOOP-BACK",
    },
}  # fmt: skip

# (table, as kube-proxy 1.36 writes it, as iptables-save 1.8.9 prints it), the same for both variants.
KINDS: list[tuple[str, str, str]] = [
    ("nat", '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES', ""),
    ("nat", '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING', ""),
    (
        "filter",
        '-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "",
    ),
    ("filter", "-A INPUT -j KUBE-FIREWALL", ""),
    (
        "nat",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    ),
    (
        "nat",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000",
        "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
    ),
    (
        "nat",
        '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" '
        "-j MASQUERADE --random-fully",
        "",
    ),
    ("nat", "-A KUBE-POSTROUTING -m set --match-set {set} dst,dst,src -j MASQUERADE", ""),
    (
        "nat",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    ),
    (
        "filter",
        '-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d {range} ! -s {range} '
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        '-A KUBE-FIREWALL ! -s {range} -d {range} -m comment --comment "block incoming localnet connections" '
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    ),
    (
        "filter",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts -j DROP",
    ),
    (
        "filter",
        '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x00004000/0x00004000 '
        "-j ACCEPT",
        '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT',
    ),
    (
        "filter",
        '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" '
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "",
    ),
    *(
        (
            "nat",
            f'-A KUBE-SERVICES -m comment --comment "ns1/svc1:p80 cluster IP" -m {p} -p {p} -d {{cip}} --dport 80 -j {SVC}',
            f'-A KUBE-SERVICES -d {{cip}} -p {p} -m comment --comment "ns1/svc1:p80 cluster IP" -m {p} --dport 80 -j {SVC}',
        )
        for p in ("tcp", "udp", "sctp")
    ),
    *(
        (
            "filter",
            f'-A KUBE-SERVICES -m comment --comment "ns1/svc1:p80 has no endpoints" -m {p} -p {p} -d {{cip}} --dport 80 '
            "-j REJECT",
            f'-A KUBE-SERVICES -d {{cip}} -p {p} -m comment --comment "ns1/svc1:p80 has no endpoints" -m {p} --dport 80 '
            "-j REJECT --reject-with {reject}",
        )
        for p in ("tcp", "udp", "sctp")
    ),
    (
        "filter",
        '-A KUBE-EXTERNAL-SERVICES -m comment --comment "ns1/svc1:p80 has no local endpoints" '
        "-m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j DROP",
        '-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "ns1/svc1:p80 has no local endpoints" '
        "-m addrtype --dst-type LOCAL -m tcp --dport 30080 -j DROP",
    ),
    (
        "filter",
        f'-A KUBE-PROXY-FIREWALL -m comment --comment "ns1/svc1:p80 traffic not accepted by {FW}" '
        "-m tcp -p tcp -d {cip} --dport 80 -j DROP",
        f'-A KUBE-PROXY-FIREWALL -d {{cip}} -p tcp -m comment --comment "ns1/svc1:p80 traffic not accepted by {FW}" '
        "-m tcp --dport 80 -j DROP",
    ),
    (
        "nat",
        f"-A KUBE-NODEPORTS -m comment --comment ns1/svc1:p80 -m tcp -p tcp --dport 30080 -j {EXT}",
        f'-A KUBE-NODEPORTS -p tcp -m comment --comment "ns1/svc1:p80" -m tcp --dport 30080 -j {EXT}',
    ),
    (
        "nat",
        "-A KUBE-NODEPORTS -m comment --comment ns1/svc1:p80 -m tcp -p tcp -d {range} --dport 30080 "
        f"-m nfacct --nfacct-name localhost_nps_accepted_pkts -j {EXT}",
        '-A KUBE-NODEPORTS -d {range} -p tcp -m comment --comment "ns1/svc1:p80" -m tcp --dport 30080 '
        f"-m nfacct --nfacct-name  localhost_nps_accepted_pkts -j {EXT}",
    ),
    (
        "filter",
        '-A KUBE-NODEPORTS -m comment --comment "ns1/svc1:p80 health check node port" -m tcp -p tcp --dport 32000 -j ACCEPT',
        '-A KUBE-NODEPORTS -p tcp -m comment --comment "ns1/svc1:p80 health check node port" -m tcp --dport 32000 -j ACCEPT',
    ),
    (
        "nat",
        f'-A {SVC} -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d {{cip}} --dport 80 ! -s {{range}} '
        "-j KUBE-MARK-MASQ",
        f'-A {SVC} ! -s {{range}} -d {{cip}} -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 '
        "-j KUBE-MARK-MASQ",
    ),
    *(
        (
            "nat",
            f'-A {SVC} -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d {{cip}} --dport 80 ! -i {name} '
            "-j KUBE-MARK-MASQ",
            f'-A {SVC} -d {{cip}} ! -i {name} -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 '
            "-j KUBE-MARK-MASQ",
        )
        for name in ("cbr0", "veth+")
    ),
    (
        "nat",
        f'-A {EXT} -m comment --comment "masquerade traffic for ns1/svc1:p80 external destinations" -j KUBE-MARK-MASQ',
        "",
    ),
    (
        "nat",
        f'-A {EXT} -m comment --comment "pod traffic for ns1/svc1:p80 external destinations" -s {{range}} -j {SVC}',
        f'-A {EXT} -s {{range}} -m comment --comment "pod traffic for ns1/svc1:p80 external destinations" -j {SVC}',
    ),
    (
        "nat",
        f'-A {EXT} -m comment --comment "masquerade LOCAL traffic for ns1/svc1:p80 external destinations" '
        "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
        "",
    ),
    ("nat", f"-A {EXT} -j {SVL}", ""),
    (
        "nat",
        f'-A {FW} -m comment --comment "ns1/svc1:p80 loadbalancer IP" -s {{range}} -j {EXT}',
        f'-A {FW} -s {{range}} -m comment --comment "ns1/svc1:p80 loadbalancer IP" -j {EXT}',
    ),
    (
        "nat",
        f'-A {FW} -m comment --comment "other traffic to ns1/svc1:p80 will be dropped by KUBE-PROXY-FIREWALL"',
        "",
    ),
    (
        "nat",
        f'-A {SVC} -m comment --comment "ns1/svc1:p80 -> {{ep}}" -m recent --name {SEP} --rcheck --seconds 10800 --reap '
        f"-j {SEP}",
        f'-A {SVC} -m comment --comment "ns1/svc1:p80 -> {{ep}}" -m recent --rcheck --seconds 10800 --reap --name {SEP} '
        f"--mask {{mask}} --rsource -j {SEP}",
    ),
    *(
        (
            "nat",
            f'-A {SVC} -m comment --comment "ns1/svc1:p80 -> {{ep}}" -m statistic --mode random '
            f"--probability {1 / n:.10f} -j {SEP}",
            f'-A {SVC} -m comment --comment "ns1/svc1:p80 -> {{ep}}" -m statistic --mode random '
            f"--probability {round(2**31 / n) / 2**31:.11f} -j {SEP}",
        )
        for n in (2, 3, 4, 5, 6, 7, 10, 100, 999, 1000, 3333)
    ),
    ("nat", f'-A {SVC} -m comment --comment "ns1/svc1:p80 -> {{ep}}" -j {SEP}', ""),
    (
        "nat",
        f"-A {SEP} -m comment --comment ns1/svc1:p80 -s {{epip}} -j KUBE-MARK-MASQ",
        f'-A {SEP} -s {{epip}}{{host}} -m comment --comment "ns1/svc1:p80" -j KUBE-MARK-MASQ',
    ),
    (
        "nat",
        f"-A {SEP} -m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination {{ep}}",
        f'-A {SEP} -p tcp -m comment --comment "ns1/svc1:p80" -m tcp -j DNAT --to-destination {{ep}}',
    ),
    (
        "nat",
        f"-A {SEP} -m comment --comment ns1/svc1:p80 -m recent --name {SEP} --set -m udp -p udp -j DNAT "
        "--to-destination {ep}",
        f'-A {SEP} -p udp -m comment --comment "ns1/svc1:p80" -m recent --set --name {SEP} --mask {{mask}} --rsource '
        "-m udp -j DNAT --to-destination {ep}",
    ),
    # shapes beyond kube-proxy's layout
    (
        "nat",
        f"-A {SVC} -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination {{ep}}",
        f"-A {SVC} -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination {{ep}}",
    ),
    ("nat", f"-A KUBE-SERVICES -d {{range}} -g {SVC}", ""),
    ("nat", "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", ""),
    ("nat", "-A KUBE-SERVICES -j MARK --set-mark 1", "-A KUBE-SERVICES -j MARK --set-xmark 0x1/0xffffffff"),
    ("nat", "-A KUBE-SERVICES -m comment --comment \"bare-word_1\" -j RETURN", "-A KUBE-SERVICES -m comment --comment bare-word_1 -j RETURN"),
    ("nat", "-A KUBE-SERVICES -m comment --comment \"it's \\\"q\\\" \\\\ -j X\" -j RETURN", "-A KUBE-SERVICES -m comment --comment \"it\\'s \\\"q\\\" \\\\ -j X\" -j RETURN"),
]  # fmt: skip


def _pairs(family: Family) -> list[tuple[str, str, str]]:
    values = VALUES[family]
    return [
        (table, given.format(**values), (saved or given).format(**values)) for table, given, saved in KINDS
    ]


@pytest.mark.parametrize("family", list(Family))
def test_kube_proxys_spelling_and_the_saved_one_are_the_same_rule(family: Family) -> None:
    for _, written, saved in _pairs(family):
        assert canonical_rule(written) == canonical_rule(saved)


@pytest.mark.parametrize("family", list(Family))
def test_no_two_kinds_are_the_same_rule(family: Family) -> None:
    forms = [(table, canonical_rule(saved)) for table, _, saved in _pairs(family)]
    assert len(set(forms)) == len(forms)


def _text(table: str, rules: list[str]) -> bytes:
    chains = sorted(
        {rule.split()[1] for rule in rules} | {"KUBE-SERVICES", "KUBE-NODEPORTS", SEP, SVC, SVL, EXT}
    )
    chains += ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"] if table == "nat" else ["KUBE-FIREWALL"]
    declared = [f":{chain} - [0:0]" for chain in dict.fromkeys(chains) if chain.startswith("KUBE")]
    return "\n".join([f"*{table}", *declared, *rules, "COMMIT", ""]).encode()


@pytest.mark.parametrize("spelling", ["written", "saved"])
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("variant", list(Variant))
@fresh_network
def test_the_saved_form_is_exactly_what_iptables_save_prints(
    variant: Variant, family: Family, spelling: str
) -> None:
    try:
        tools = find_tools(family, variant, probe=False)
    except XtablesUnavailable as error:
        pytest.skip(error.reason)
    if not nfacct.ensure("ct_state_invalid_dropped_pkts") or not nfacct.ensure("localhost_nps_accepted_pkts"):
        pytest.skip("the kernel has no nfacct objects")
    create = ["ipset", "create", VALUES[family]["set"], "hash:ip,port,ip"]
    inet6 = ["family", "inet6"] if family is Family.IPV6 else []
    subprocess.run([*create, *inet6], check=True, capture_output=True)
    xtables = SubprocessXtables(family, tools)
    for wanted in ("nat", "filter"):
        rules = [(written, saved) for table, written, saved in _pairs(family) if table == wanted]
        xtables.restore(_text(wanted, [pair[spelling == "saved"] for pair in rules]))
        printed = parse_save(xtables.save(wanted))[wanted]
        expected: dict[str, list[str]] = {}
        for _, saved in rules:
            expected.setdefault(saved.split()[1], []).append(saved)
        assert {chain: lines for chain, lines in printed.items() if lines} == expected


SAME = [
    ("-A A -p tcp --dport 80 -j B", "-A A -p tcp -m tcp --dport 80:80 -j B"),
    ("-A A -p 6 -j B", "-A A -p tcp -m tcp -j B"),
    ("-A A -p 58 -j B", "-A A -p icmpv6 -j B"),
    ("-A A -s 0.0.0.0/0 -d 10.1.2.3/24 -j B", "-A A -d 10.1.2.0/255.255.255.0 -j B"),
    ("-A A -d FD00:0:0:0::1 -j B", "-A A --destination fd00::1/128 --jump B"),
    ("-A A -i + -p all -j B", "-A A -j B"),
    ("-A A -m mark --mark 0x1 -j B", "-A A -m mark --mark 1/0xffffffff -j B"),
    ("-A A -j MARK --and-mark 0xffffbfff", "-A A -j MARK --set-xmark 0x0/0x4000"),
    ("-A A -j MARK --set-mark 1/2", "-A A -j MARK --set-xmark 0x1/0x3"),
    ("-A A -m conntrack --ctstate DNAT,NEW -j B", "-A A -m conntrack --ctstate NEW,DNAT -j B"),
    ("-A A -m addrtype --src-type LOCAL,UNICAST -j B", "-A A -m addrtype --src-type UNICAST,LOCAL -j B"),
    ("-A A -m recent --set -j B", "-A A -m recent --set --name DEFAULT --mask 255.255.255.255 --rsource -j B"),
    ("-A A -j REJECT", "-A A -j REJECT --reject-with icmp6-port-unreachable"),
    ("-A A -j DNAT --to-destination [fd00:0::1]", "-A A -j DNAT --to-destination fd00::1"),
    ("-A A -j DNAT --to-destination 1.1.1.1:1 --persistent --random", "-A A -j DNAT --random --to-destination 1.1.1.1:1 --persistent"),
    ("-A A -p tcp --syn -j B", "-A A -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j B"),
    ("-A A -p tcp -m tcp --dport 0:65535 -j B", "-A A -p tcp -m tcp -j B"),
    ('-A A -j B -m comment --comment "x y"', '-A A -m comment --comment "x y" -j B'),
    ("[5:300] -A A -j B", "-A A -j B"),
    ("-I A 3 -s 10.0.0.1 -j B", "-A A -s 10.0.0.1/32 -j B"),
    ("-D A -s 10.0.0.1 -j B", "-A A -s 10.0.0.1/32 -j B"),
]  # fmt: skip

DIFFERENT = [
    ("-A A -j B", "-A B -j B"),
    ("-A A -j B", "-A A -g B"),
    ("-A A -s 10.0.0.1 -j B", "-A A ! -s 10.0.0.1 -j B"),
    ("-A A -s 10.0.0.1 -j B", "-A A -d 10.0.0.1 -j B"),
    ("-A A -s 10.0.0.0/8 -j B", "-A A -s 10.0.0.0/9 -j B"),
    ("-A A -p tcp --dport 80 -j B", "-A A -p tcp --sport 80 -j B"),
    ("-A A -p tcp --dport 80 -j B", "-A A -p udp --dport 80 -j B"),
    ("-A A -p tcp ! --dport 80 -j B", "-A A -p tcp --dport 80 -j B"),
    ("-A A -j MARK --or-mark 1", "-A A -j MARK --xor-mark 1"),
    ("-A A -j MARK --set-mark 1", "-A A -j MARK --or-mark 1"),
    ("-A A -m statistic --mode random --probability 0.3333333 -j B", "-A A -m statistic --mode random --probability 0.3333334 -j B"),
    ("-A A -m recent --set --name X -j B", "-A A -m recent --set --name X --rdest -j B"),
    ("-A A -j MASQUERADE", "-A A -j MASQUERADE --random-fully"),
    ("-A A -m comment --comment a -j B", "-A A -m comment --comment b -j B"),
    ("-A A -j REJECT", "-A A -j REJECT --reject-with tcp-reset"),
    ("-A A -m set --match-set X src -j B", "-A A -m set --match-set X dst -j B"),
    ("-A A -m set ! --match-set X src -j B", "-A A -m set --match-set X src -j B"),
    ("-A A -m limit --limit 1/sec -m recent --set -j B", "-A A -m recent --set -m limit --limit 1/sec -j B"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_rule_are_equal(one: str, other: str) -> None:
    assert canonical_rule(one) == canonical_rule(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_rules_differ(one: str, other: str) -> None:
    assert canonical_rule(one) != canonical_rule(other)


@pytest.mark.parametrize("line", ["", "COMMIT", ":A - [0:0]", "-X A", "-A"])
def test_what_is_no_rule_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="not an iptables rule"):
        canonical_rule(line)


@given(st.integers(1, 100_000))
def test_kube_proxys_ten_decimals_and_the_kernels_fraction_agree(n: int) -> None:
    printed = f"{round(float(f'{1 / n:.10f}') * 2**31) / 2**31:.11f}"
    assert probability(printed) == probability(f"{1 / n:.10f}")


@given(st.binary(min_size=16, max_size=16))
def test_every_printed_form_of_an_ipv6_address_is_the_same_network(packed: bytes) -> None:
    short = socket.inet_ntop(socket.AF_INET6, packed)
    full = ":".join(f"{packed[i]:02X}{packed[i + 1]:02X}" for i in range(0, 16, 2))
    assert canonical_rule(f"-A A -d {short} -j B") == canonical_rule(f"-A A -d {full}/128 -j B")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), min_size=1))
def test_any_comment_survives_quoting(comment: str) -> None:
    quoted = comment.replace("\\", "\\\\").replace('"', '\\"')
    assert tokenize(f'-m comment --comment "{quoted}" -j B')[3] == (comment, True)
