"""What IPVS does with a packet, without a kernel: servers, weights, schedulers, affinity, and its place."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from kproxy.backends.core import hooks
from kproxy.backends.core.packets import Branch, Hook
from kproxy.backends.ipvs.interpreter import Servers, servers_at_hooks, shares_of
from kproxy.kernel import recent
from kproxy.kernel.ipvs.templates import parse
from kproxy.kernel.ipvs.types import PERSISTENT, DestinationId, DestinationState, ServerId, VirtualServer
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import Outcome, Packet, PacketVerdict, Where
from tests.explain.routes import PaperRouting

HERE, THERE, IDLE = (DestinationId(ip, 8080) for ip in ("10.1.1.9", "10.1.2.9", "10.1.2.8"))
VIP = ServerId("TCP", "192.168.0.2", 80)
CLIENT = Packet("192.0.2.7", Protocol.TCP, "192.168.0.2", 80, Where.OUTSIDE, "eth0")


def _walk(
    weights: Mapping[DestinationId, int],
    packet: Packet = CLIENT,
    scheduler: str = "wrr",
    **fields: object,
) -> tuple[Outcome, ...]:
    flags = PERSISTENT if "templates" in fields else 0
    servers = Servers(
        {VIP: VirtualServer(scheduler, flags)},
        lambda _: {each: DestinationState(weight) for each, weight in weights.items()},
        **fields,  # type: ignore[arg-type]
    )
    return hooks.walk(servers_at_hooks(servers), packet, PaperRouting())


def _shares(outcomes: tuple[Outcome, ...]) -> dict[str | None, float]:
    return {outcome.endpoint: round(outcome.probability, 3) for outcome in outcomes}


def test_a_virtual_server_divides_packets_by_weight() -> None:
    found = _walk({HERE: 1, THERE: 3, IDLE: 0})
    assert _shares(found) == {"10.1.1.9:8080": 0.25, "10.1.2.9:8080": 0.75}
    assert found[0].steps == ("ipvs: TCP 192.168.0.2:80 wrr -> 10.1.1.9:8080 weight 1",)


@pytest.mark.parametrize("scheduler", ["rr", "lc", "dh"])
def test_some_schedulers_look_at_weights_only_to_see_whether_they_are_zero(scheduler: str) -> None:
    known = {HERE: DestinationState(1), THERE: DestinationState(5), IDLE: DestinationState(0)}
    assert shares_of(scheduler, known) == {HERE: 0.5, THERE: 0.5}


@pytest.mark.parametrize(
    ("scheduler", "words"), [("sh", "source"), ("mh", "source"), ("lblc", "destination")]
)
def test_a_step_says_what_decides_instead_of_chance(scheduler: str, words: str) -> None:
    assert f"the hash of the {words} decides" in _walk({HERE: 1, THERE: 1}, scheduler=scheduler)[0].steps[0]


def test_a_server_without_weights_refuses() -> None:
    (outcome,) = _walk({HERE: 0})
    assert outcome.verdict is PacketVerdict.REJECT
    assert outcome.reason == "ipvs: TCP 192.168.0.2:80 wrr: no destination of weight"


def test_a_client_with_affinity_goes_to_its_destination() -> None:
    known = {("192.0.2.7", VIP): THERE}
    assert _shares(_walk({HERE: 1, THERE: 1}, templates=known)) == {"10.1.2.9:8080": 1.0}
    assert _shares(_walk({HERE: 1, THERE: 0}, templates=known)) == {"10.1.2.9:8080": 1.0}
    ended = _walk({HERE: 1, THERE: 0}, templates=known, quiescent=True)
    assert _shares(ended) == {"10.1.1.9:8080": 1.0}
    assert _shares(_walk({HERE: 1}, templates=known)) == {"10.1.1.9:8080": 1.0}


def test_packets_of_the_node_itself_are_taken_too() -> None:
    own = Packet("192.168.0.2", Protocol.TCP, "192.168.0.2", 80, Where.NODE)
    assert _shares(_walk({THERE: 1}, own)) == {"10.1.2.9:8080": 1.0}


def test_other_ports_and_protocols_pass() -> None:
    for protocol, port in ((Protocol.UDP, 80), (Protocol.TCP, 81)):
        packet = Packet("192.0.2.7", protocol, "192.168.0.2", port, Where.OUTSIDE, "eth0")
        (outcome,) = _walk({HERE: 1}, packet)
        assert outcome.verdict is PacketVerdict.UNTOUCHED


def test_the_server_of_a_mark_is_not_guessed() -> None:
    (outcome,) = _walk({HERE: 1}, marks=frozenset({0}))
    assert outcome.verdict is PacketVerdict.UNKNOWN
    assert "mark 0x0" in outcome.reason
    (outcome,) = _walk({HERE: 1}, local_marks=frozenset({0}))
    assert outcome.verdict is PacketVerdict.UNTOUCHED


def test_templates_are_the_connections_without_a_client_port() -> None:
    text = (
        "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
        "TCP C0000207 0000 0A600001 0050 0A010109 1F90 NONE            120\n"
        "TCP C0000207 9C40 0A600001 0050 0A010109 1F90 ESTABLISHED     899\n"
        "UDP fd00:0001:0000:0000:0000:0000:0000:0005 0000 fd00:0096:0000:0000:0000:0000:0000:0001 0035 "
        "fd00:0001:0000:0000:0000:0000:0000:0009 14E9 UDP             100\n"
    )
    assert parse(text) == [
        (("192.0.2.7", ServerId("TCP", "10.96.0.1", 80)), DestinationId("10.1.1.9", 8080)),
        (("fd00:1::5", ServerId("UDP", "fd00:96::1", 53)), DestinationId("fd00:1::9", 5353)),
    ]


def test_clients_of_recent_lists_have_an_age(tmp_path: Path) -> None:
    lists, timers = tmp_path / "lists", tmp_path / "timers"
    lists.mkdir()
    now = (1 << 32) + (1000 - 300) * 250
    (lists / "KUBE-SEP-A").write_text(
        f"src=10.1.1.5 ttl: 64 last_seen: {now - 500} oldest_pkt: 1 {now - 500}\n"
        f"src=fd00:0001:0000:0000:0000:0000:0000:0005 ttl: 64 last_seen: {now} oldest_pkt: 1 {now}\n"
    )
    timers.write_text(f"Timer List Version: v0.10\nnow at {1000 * 10**9} nsecs\n\ncpu: 0\njiffies: {now}\n")
    assert recent.clients(lists, timers) == {"KUBE-SEP-A": {"10.1.1.5": 2.0, "fd00:1::5": 0.0}}
    assert recent.clients(lists, tmp_path / "hidden")["KUBE-SEP-A"]["10.1.1.5"] == 0.0
    assert recent.clients(tmp_path / "none", timers) == {}


class _Witness:
    """A chain of another program that notes which packets it sees, and drops those of one destination."""

    translates = False
    table = "ip witness"

    def __init__(self, hook: Hook, priority: int, refused: str = "") -> None:
        self.hook = hook
        self.priority = priority
        self.seen: list[tuple[str, str, int]] = []
        self._refused = refused

    def walk(self, branch: Branch, _routing: object) -> list[Branch]:
        flow = branch.flow
        self.seen.append((flow.source, flow.destination, flow.port))
        refused = flow.destination == self._refused
        return [branch.end(PacketVerdict.DROP, "refused") if refused else branch]


def test_policies_see_what_ipvs_sends_on_at_output_and_not_what_it_takes_at_input() -> None:
    servers = Servers(
        {VIP: VirtualServer("rr", 0)}, lambda _: {each: DestinationState(1) for each in (HERE, THERE)}
    )
    early = _Witness(Hook.INPUT, 0)
    late = _Witness(Hook.INPUT, 110)
    out = _Witness(Hook.OUTPUT, -5, refused=THERE.ip)
    found = hooks.walk((*servers_at_hooks(servers), early, late, out), CLIENT, PaperRouting())
    assert {(each.verdict, each.endpoint) for each in found} == {
        (PacketVerdict.FORWARD, "10.1.1.9:8080"),
        (PacketVerdict.DROP, None),
    }
    assert (early.seen, late.seen) == ([("192.0.2.7", "192.168.0.2", 80)], [])
    assert sorted(out.seen) == [("192.0.2.7", each.ip, 8080) for each in (HERE, THERE)]
