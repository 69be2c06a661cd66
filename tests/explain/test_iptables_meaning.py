"""The meaning of iptables rules, one by one: matches, targets, and what is not modelled."""

import pytest

from kproxy.addresses import Family
from kproxy.modes.packet_walk import RulesOfAllModes
from kproxy.modes.registry import mode_registry
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import Outcome, Packet, PacketVerdict, Where
from tests.explain.judge import settings
from tests.explain.routes import PaperRouting

POD = Packet("10.1.1.5", Protocol.TCP, "10.96.0.1", 80, Where.POD, "cni0", 40000)
CLIENT = Packet("192.0.2.7", Protocol.TCP, "10.96.0.1", 80, Where.OUTSIDE, "eth0", 40000)
OWN = Packet("192.168.0.2", Protocol.TCP, "10.96.0.1", 80, Where.NODE, None, 40000)
TO_NODE = Packet("192.0.2.7", Protocol.UDP, "192.168.0.2", 53, Where.OUTSIDE, "eth0")
LOST = Packet("10.1.1.5", Protocol.TCP, "198.51.100.9", 80, Where.POD, "cni0")
SIX = Packet("fd00:1:1::5", Protocol.UDP, "fd00:96::1", 53, Where.POD, "cni0")
UNSEEN = Packet("10.1.1.5", Protocol.TCP, "10.96.0.1", 80, Where.POD)


_DNAT = "PREROUTING -p tcp -j DNAT --to-destination 10.1.1.9:80"
_MARK = "PREROUTING -j MARK --set-xmark 0x3/0xffffffff\nPREROUTING -j CONNMARK --save-mark"


def _walk(packet: Packet, **tables: str) -> tuple[Outcome, ...]:
    """What becomes of a packet in tables, each a list of rules without `-A`; `policy CHAIN DROP` too."""
    hooks = {
        "raw": ("PREROUTING", "OUTPUT"),
        "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
    }
    text = ""
    for table, rules in tables.items():
        lines = [line.strip() for line in rules.strip().splitlines()]
        dropping = {line.split()[1] for line in lines if line.startswith("policy ")}
        lines = [line for line in lines if not line.startswith("policy ")]
        own = {line.split()[0] for line in lines} - set(hooks[table])
        text += f"*{table}\n"
        text += "".join(f":{c} {'DROP' if c in dropping else 'ACCEPT'} [0:0]\n" for c in hooks[table])
        text += "".join(f":{chain} - [0:0]\n" for chain in sorted(own))
        text += "".join(f"-A {line}\n" for line in lines) + "COMMIT\n"
    walker = RulesOfAllModes(mode_registry().rule_readers(settings(proxy_mode="iptables")))
    return walker.walk(walker.load_dump(text, packet.family), packet, PaperRouting())


def _one(packet: Packet, **tables: str) -> tuple[str, str | None, bool]:
    (outcome,) = _walk(packet, **tables)
    assert outcome.probability == pytest.approx(1)
    return outcome.verdict.value, outcome.endpoint, outcome.masquerade


@pytest.mark.parametrize(
    ("packet", "match", "holds"),
    [
        (POD, "-s 10.1.0.0/16", True),
        (POD, "! -s 10.1.0.0/16", False),
        (POD, "-d 10.96.0.0/12 -i cni+", True),
        (POD, "-i eth0", False),
        (POD, "! -i eth0", True),
        (POD, "-p tcp -m tcp --dport 80:90", True),
        (POD, "-p tcp -m tcp ! --dport 80", False),
        (POD, "-p udp -m udp --dport 80", False),
        (POD, "-p tcp -m tcp --sport 40000:", True),
        (POD, "-p tcp -m multiport --dports 22,79:81", True),
        (POD, "-p tcp -m multiport ! --dports 22,443", True),
        (POD, "-p tcp -m multiport --ports 40000", True),
        (POD, "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", True),
        (POD, "-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK", False),
        (POD, "-m conntrack --ctstate RELATED,ESTABLISHED", False),
        (POD, "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", True),
        (POD, "-m state --state NEW", True),
        (POD, "-m conntrack --ctdir ORIGINAL", True),
        (POD, "-m mark --mark 0x0/0xff", True),
        (POD, "-m mark ! --mark 0x0/0xff", False),
        (POD, "-m connmark --mark 0x1", False),
        (POD, "-m addrtype --dst-type LOCAL", False),
        (POD, "-m addrtype ! --dst-type LOCAL", True),
        (POD, "-m addrtype --src-type UNICAST", True),
        (POD, "-m addrtype --dst-type BROADCAST", False),
        (OWN, "-m addrtype --src-type LOCAL", True),
        (POD, "-m iprange --src-range 10.1.1.1-10.1.1.9", True),
        (POD, "-m iprange ! --dst-range 10.96.0.0-10.96.0.2", False),
        (POD, "-m limit --limit 1/min", True),
        (POD, "-m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-name x", False),
        (POD, "-m rpfilter --loose", True),
        (POD, "-m rpfilter --invert", False),
        (CLIENT, "-m rpfilter", True),
        (POD, "-m pkttype --pkt-type unicast", True),
        (POD, "-m physdev --physdev-is-bridged", False),
        (POD, "-m nfacct --nfacct-name  some_counter", True),
        (POD, '-m comment --comment "with -j DROP and ! in it"', True),
        (POD, "-m recent --rcheck --seconds 5 --name L --mask 255.255.255.255 --rsource", False),
        (POD, "-m recent --set --name L --mask 255.255.255.255 --rsource", True),
        (POD, "-p icmp -m icmp --icmp-type 8", False),
        (POD, "-m policy --dir in --pol none", True),
        (SIX, "-s fd00:1::/32 -p udp -m udp --dport 53", True),
        (SIX, "-d ::/0 -i cni0", True),
        (SIX, "! -d fd00:96::1/128", False),
    ],
)
def test_a_match(packet: Packet, match: str, holds: bool) -> None:
    hook = "OUTPUT" if packet.where is Where.NODE else "PREROUTING"
    assert _one(packet, mangle=f"{hook} {match} -j DROP")[0] == ("drop" if holds else "pass")


@pytest.mark.parametrize(
    "match",
    [
        "-m length --length 0:100",
        "-m time --timestart 01:00:00",
        '-m string --string "GET" --algo bm --to 65535',
        "-m u32 --u32 0x0=0x0",
        "-m set --match-set BLOCKED src",
        "-m owner --uid-owner 0",
        "-m physdev --physdev-in eth1",
        "-m something --else 3",
        "-m policy --dir in --pol ipsec",
    ],
)
def test_a_match_that_is_not_modelled_is_quoted(match: str) -> None:
    (outcome,) = _walk(POD, filter=f"FORWARD {match} -j DROP")
    assert outcome.verdict is PacketVerdict.UNKNOWN
    assert f"filter FORWARD: {match} -j DROP" in outcome.reason


def test_an_interface_that_is_not_known_is_not_guessed() -> None:
    (outcome,) = _walk(UNSEEN, filter="FORWARD -i cni0 -j DROP")
    assert outcome.verdict is PacketVerdict.UNKNOWN


@pytest.mark.parametrize("target", ["ACCEPT", "LOG", "MARK --set-xmark 0x1/0x1", "NFLOG --nflog-group 3"])
def test_a_match_that_is_not_modelled_and_changes_nothing_leaves_the_outcome_known(target: str) -> None:
    assert _one(POD, mangle=f"FORWARD -m length --length 0:100 -j {target}")[0] == "pass"


def test_what_is_the_same_both_ways_stays_known() -> None:
    nat = f"""
        PREROUTING -m statistic --mode random --probability 0.50000000000 {_DNAT.removeprefix("PREROUTING ")}
        PREROUTING -m length --length 0:100 -j DNAT --to-destination 10.1.1.8:80
    """
    found = {o.endpoint or o.verdict.value: round(o.probability, 3) for o in _walk(CLIENT, nat=nat)}
    assert found == {"10.1.1.9:80": 0.5, "unknown": 0.5}


@pytest.mark.parametrize(
    ("packet", "tables", "expected"),
    [
        (
            CLIENT,
            {"nat": "PREROUTING -p tcp -j DNAT --to-destination 10.1.1.9:8080"},
            ("forward", "10.1.1.9:8080", False),
        ),
        (
            CLIENT,
            {"nat": "PREROUTING -p tcp -j DNAT --to-destination 10.1.1.9"},
            ("forward", "10.1.1.9:80", False),
        ),
        (
            CLIENT,
            {"nat": "PREROUTING -p tcp -j DNAT --to-destination :8080"},
            ("forward", "10.96.0.1:8080", False),
        ),
        (
            SIX,
            {"nat": "PREROUTING -p udp -j DNAT --to-destination [fd00:1:1::9]:5353"},
            ("forward", "[fd00:1:1::9]:5353", False),
        ),
        (CLIENT, {"nat": "PREROUTING -p tcp -j REDIRECT --to-ports 7"}, ("forward", "192.168.0.2:7", False)),
        (OWN, {"nat": "OUTPUT -p tcp -j REDIRECT --to-ports 7"}, ("forward", "127.0.0.1:7", False)),
        (
            CLIENT,
            {"nat": f"{_DNAT}\nPOSTROUTING -o cni0 -j MASQUERADE"},
            ("forward", "10.1.1.9:80", True),
        ),
        (
            CLIENT,
            {"nat": f"{_DNAT}\nPOSTROUTING -j SNAT --to-source 192.168.0.2"},
            ("forward", "10.1.1.9:80", True),
        ),
        (CLIENT, {"filter": "policy FORWARD DROP"}, ("drop", None, False)),
        (TO_NODE, {"filter": "policy FORWARD DROP"}, ("pass", None, False)),
        (
            TO_NODE,
            {"filter": "INPUT -p udp -j REJECT --reject-with icmp-port-unreachable"},
            ("reject", None, False),
        ),
        (OWN, {"filter": "OUTPUT -d 10.96.0.1/32 -j DROP"}, ("drop", None, False)),
        (OWN, {"filter": "FORWARD -j DROP\nINPUT -j DROP"}, ("pass", None, False)),
        (LOST, {"filter": "FORWARD -j DROP"}, ("reject", None, False)),
        (CLIENT, {"raw": "PREROUTING -j CT --notrack", "nat": _DNAT}, ("pass", None, False)),
        (
            CLIENT,
            {"filter": "FORWARD -j A\nA -j RETURN\nA -j DROP\nFORWARD -j ACCEPT"},
            ("pass", None, False),
        ),
        (
            CLIENT,
            {"filter": "FORWARD -g A\nA -s 10.0.0.0/8 -j ACCEPT\nFORWARD -j DROP\npolicy FORWARD DROP"},
            ("drop", None, False),
        ),
        (
            CLIENT,
            {"filter": "FORWARD -j A\nA -j B\nB -g C\nC -s 10.0.0.0/8 -j DROP\nA -j DROP"},
            ("drop", None, False),
        ),
        (
            CLIENT,
            {
                "mangle": "PREROUTING -j MARK --set-xmark 0x4000/0x4000",
                "filter": "FORWARD -m mark --mark 0x4000/0x4000 -j DROP",
            },
            ("drop", None, False),
        ),
        (
            CLIENT,
            {"mangle": f"{_MARK}\nFORWARD -m connmark --mark 0x3 -j DROP"},
            ("drop", None, False),
        ),
        (CLIENT, {"nat": f"PREROUTING -j ACCEPT\n{_DNAT}"}, ("pass", None, False)),
        (CLIENT, {"mangle": "FORWARD -j ACCEPT", "filter": "FORWARD -j DROP"}, ("drop", None, False)),
    ],
)
def test_a_target(packet: Packet, tables: dict[str, str], expected: tuple[str, str | None, bool]) -> None:
    assert _one(packet, **tables) == expected


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        ("-m conntrack --ctstate UNTRACKED", True),
        ("-m conntrack ! --ctstate NEW", True),
        ("-m conntrack --ctdir ORIGINAL", False),
        ("-m connmark ! --mark 0x1", False),
    ],
)
def test_a_packet_without_a_connection_has_only_a_state(match: str, holds: bool) -> None:
    outcome = _one(CLIENT, raw="PREROUTING -j CT --notrack", mangle=f"PREROUTING {match} -j DROP")
    assert outcome[0] == ("drop" if holds else "pass")


@pytest.mark.parametrize(
    "target",
    [
        "DNAT --to-destination 10.1.1.1-10.1.1.9",
        "NFQUEUE --queue-num 0",
        "TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1",
        "NETMAP --to 10.0.0.0/8",
    ],
)
def test_a_target_that_is_not_modelled_is_quoted(target: str) -> None:
    (outcome,) = _walk(CLIENT, nat=f"PREROUTING -p tcp -j {target}")
    assert outcome.verdict is PacketVerdict.UNKNOWN
    assert f"nat PREROUTING: -p tcp -j {target}" in outcome.reason


def test_a_rule_that_was_written_with_nft_is_not_guessed() -> None:
    (outcome,) = _walk(CLIENT, filter="FORWARD -m nft --handle 12")
    assert outcome.verdict is PacketVerdict.UNKNOWN


def test_steps_tell_table_chain_and_rule() -> None:
    (outcome,) = _walk(CLIENT, filter="FORWARD -i eth0 -j A\nA -p tcp -j REJECT --reject-with tcp-reset")
    assert outcome.steps == (
        "filter FORWARD: -i eth0 -j A",
        "filter A: -p tcp -j REJECT --reject-with tcp-reset",
    )
    assert outcome.reason == outcome.steps[-1]


def test_the_rules_of_a_chain_may_lie_apart_in_an_edited_dump() -> None:
    walker = RulesOfAllModes(mode_registry().rule_readers(settings(proxy_mode="iptables")))
    lines = ["*filter", ":FORWARD ACCEPT [0:0]", "-A FORWARD -i x -j ACCEPT", "-A OUTPUT -j ACCEPT"]
    text = "\n".join([*lines, "-A FORWARD -j DROP", "COMMIT", ""])
    rules = walker.load_dump(text, Family.IPV4)
    (outcome,) = walker.walk(rules, CLIENT, PaperRouting())
    assert outcome.verdict is PacketVerdict.DROP
