"""Refused flows: the ring of reports and counts, what the plan says of them, and what they cost."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.agent.policy.refused import JUDGED_AT_ONCE, RefusedRing
from kproxy.agent.policy.refused_counts import RefusedCounts
from kproxy.agent.policy.refused_flows import RefusedFlows
from kproxy.backends.policy.refusals import FlowKey, RefusedCount, decode_key, direction_of
from kproxy.config.model import ProxyConfig
from kproxy.inspect.agent_client import AgentUnavailable
from kproxy.inspect.drops import DropList, RefusedFlow, fetch, follow
from kproxy.kernel.nflog import Logged, Nflog
from kproxy.plan.policy.model import Direction, Group, PolicyTable, Touched
from kproxy.plan.policy.planner import PolicyPlanner
from tests.kernel.namespace import fresh_network
from tests.state.policy_objects import namespace, pod, policy

WEB, DB, CLIENT, REMOTE = "10.1.0.10", "10.1.0.11", "10.1.0.20", "10.2.0.9"
PODS = [
    pod("web", WEB, labels={"app": "web"}),
    pod("db", DB, labels={"app": "db"}),
    pod("client", CLIENT, labels={"app": "client"}),
    pod("remote", REMOTE, labels={"app": "client"}, node="n2"),
]
POLICIES = [
    policy(
        "web",
        {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 8080}]}
            ],
        },
    ),
    policy("db", {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"]}),
]
GROUP = 1701
NEAREST = "shop/web ingress[0] allows this source, but only TCP 8080"

T = TypeVar("T")


class Plan:
    """A planner that is asked as the agent asks it."""

    def __init__(self) -> None:
        self.planner = PolicyPlanner.full(
            "n1",
            tuple(Family),
            {each.key: each for each in PODS},
            {"shop": namespace("shop")},
            {each.key: each for each in POLICIES},
        )
        self.asked = 0
        self.on = True
        self.waits: str | None = None

    def waits_for(self) -> str | None:
        return self.waits

    def ask(self, question: Callable[[PolicyPlanner], T]) -> T | None:
        self.asked += 1
        return question(self.planner) if self.on else None

    def group(self, direction: Direction, ip: str) -> str:
        return self.planner.tables[Family.IPV4].isolated[direction][ip]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def plan() -> Plan:
    return Plan()


def logged(source: str, destination: str, port: int, prefix: str, **fields: Any) -> Logged:
    return Logged(prefix, source, destination, fields.pop("protocol", 6), 40000, port, **fields)


def flows(ring: RefusedRing, **asked: Any) -> list[RefusedFlow]:
    found = ring.list(asked.get("since"), asked.get("after", 0), asked.get("most", 0), ())
    return [each.flow for each in found.flows]


def counted(
    source: str, destination: str, port: int, packets: int, age: float, direction: str
) -> RefusedCount:
    return RefusedCount(FlowKey(source, destination, 6, port, direction), packets, age)


def test_a_report_names_both_pods_the_policies_and_the_nearest_rule(plan: Plan) -> None:
    ring = RefusedRing(plan.ask)
    ring.reported([logged(CLIENT, WEB, 9090, plan.group(Direction.INGRESS, WEB))], direction_of)
    (found,) = flows(ring)
    plain = msgspec.to_builtins(found)
    assert plain.pop("time")
    assert plain == {
        "source": {"ip": CLIENT, "port": 40000, "pod": "shop/client"},
        "wanted": {"ip": WEB, "port": 9090, "pod": "shop/web"},
        "protocol": "TCP",
        "packets": 1,
        "reason": "network_policy",
        "detail": f"ingress of shop/web is isolated by shop/web: {NEAREST}",
        "direction": "ingress",
        "policies": ("shop/web",),
        "nearest": NEAREST,
    }


def test_an_end_that_is_no_pod_has_only_an_address(plan: Plan) -> None:
    ring = RefusedRing(plan.ask)
    ring.reported([logged(DB, "192.0.2.1", 443, plan.group(Direction.EGRESS, DB))], direction_of)
    (found,) = flows(ring)
    assert msgspec.to_builtins(found)["wanted"] == {"ip": "192.0.2.1", "port": 443}
    assert (found.direction, found.policies) == ("egress", ("shop/db",))
    assert found.detail == "egress of shop/db is isolated by shop/db: shop/db allows nothing"


@pytest.mark.parametrize(("number", "word"), [(1, "ICMP"), (58, "ICMPv6"), (47, "47")])
def test_other_protocols_are_named_without_a_port(plan: Plan, number: int, word: str) -> None:
    ring = RefusedRing(plan.ask)
    ring.reported([Logged("i-x", REMOTE, WEB, number)], direction_of)
    ring.reported([Logged("e-x", DB, WEB, number)], direction_of)
    ingress, egress = flows(ring)
    assert (ingress.protocol, ingress.wanted.port, ingress.nearest) == (word, 0, NEAREST)
    assert (egress.protocol, egress.policies) == (word, ("shop/db",))


def test_what_was_judged_stays_when_policies_change(plan: Plan) -> None:
    ring = RefusedRing(plan.ask)
    group = plan.group(Direction.INGRESS, WEB)
    ring.reported([logged(CLIENT, WEB, 9090, group)], direction_of)
    plan.planner.update({}, {}, {"shop/web": None})
    ring.reported([logged(CLIENT, WEB, 9091, group)], direction_of)
    first, second = flows(ring)
    assert first.policies == ("shop/web",)
    assert second.detail == "ingress of shop/web was refused; now no policy isolates it"


def test_a_pod_that_was_not_known_is_said_so(plan: Plan) -> None:
    ring = RefusedRing(plan.ask)
    ring.reported([logged(CLIENT, "10.1.0.99", 80, "unknown")], direction_of)
    (found,) = flows(ring)
    assert (found.direction, found.policies, found.source.pod) == ("unknown", (), "shop/client")
    assert "no pod with its address is known" in found.detail


def test_an_ipv4_address_within_ipv6_is_shown_and_not_judged(plan: Plan) -> None:
    ring = RefusedRing(plan.ask)
    ring.reported([logged("::ffff:a01:14", "fd00::10", 80, "i-x")], direction_of)
    (found,) = flows(ring)
    assert (found.source.ip, found.policies) == ("::ffff:a01:14", ())
    assert found.detail == "its ingress was refused; no pod of this node has the address any more"


def test_counts_add_packets_and_flows_that_were_not_reported(plan: Plan) -> None:
    clock = Clock()
    ring = RefusedRing(plan.ask, clock)
    ring.reported([logged(CLIENT, WEB, 9090, "i-x", at=990.0)], direction_of)
    ring.counted(
        [counted(CLIENT, WEB, 9090, 5, 2.0, "ingress"), counted(REMOTE, WEB, 9091, 7, 60.0, "ingress")]
    )
    first, second = flows(ring)
    assert (first.source.port, first.packets, first.wanted.port) == (0, 7, 9091)
    assert (second.source.port, second.packets, second.time.timestamp()) == (40000, 5, 998.0)
    assert [each.wanted.port for each in flows(ring, since=30.0)] == [9090]


def test_the_service_is_named_if_the_destination_was_translated(plan: Plan) -> None:
    asked = []

    def service_of(ip: str, port: int, protocol: str) -> str | None:
        asked.append((ip, port, protocol))
        return "shop/front" if port == 80 else None

    ring = RefusedRing(plan.ask, service_of=service_of)
    for port, at in (
        (9090, ("10.96.0.1", 80)),
        (9091, ("10.96.0.1", 81)),
        (9092, (WEB, 9092)),
        (9093, ("", 0)),
    ):
        ring.reported([logged(CLIENT, WEB, port, "i-x", asked=at[0], asked_port=at[1])], direction_of)
    found = [msgspec.to_builtins(each.wanted) for each in flows(ring)]
    assert [each.get("service") for each in found] == ["shop/front", None, None, None]
    assert {(each["ip"], each["pod"]) for each in found} == {(WEB, "shop/web")}
    assert asked == [("10.96.0.1", 80, "TCP"), ("10.96.0.1", 81, "TCP")]


def test_a_report_after_its_count_completes_it(plan: Plan) -> None:
    clock = Clock()
    ring = RefusedRing(plan.ask, clock)
    ring.counted([counted(CLIENT, WEB, 9090, 3, 0.0, "ingress")])
    last = ring.list(None, 0, 0, ()).last
    ring.reported([logged(CLIENT, WEB, 9090, "i-x", at=1000.5)], direction_of)
    assert flows(ring, after=last) == []
    (found,) = flows(ring)
    assert (found.source.port, found.packets) == (40000, 3)


def test_what_is_refused_again_is_new_again(plan: Plan) -> None:
    ring = RefusedRing(plan.ask)
    ring.counted(
        [counted(CLIENT, WEB, 9090, 3, 1.0, "ingress"), counted(CLIENT, WEB, 9091, 1, 1.0, "ingress")]
    )
    last = ring.list(None, 0, 0, ()).last
    ring.counted(
        [counted(CLIENT, WEB, 9090, 4, 0.0, "ingress"), counted(CLIENT, WEB, 9091, 1, 1.5, "ingress")]
    )
    assert [(each.wanted.port, each.packets) for each in flows(ring, after=last)] == [(9090, 4)]


def test_the_ring_and_what_it_judges_at_once_are_bounded(plan: Plan) -> None:
    clock = Clock()
    ring = RefusedRing(plan.ask, clock, kept=1000)
    ring.reported((logged(CLIENT, WEB, port, "i-x") for port in range(5000)), direction_of)
    assert plan.asked == JUDGED_AT_ONCE
    found = ring.list(None, 0, 0, ())
    assert [each.flow.wanted.port for each in found.flows] == list(range(4000, 5000))
    assert all(each.flow.policies == ("shop/web",) for each in found.flows)
    assert (found.last, found.more) == (5000, 0)
    some = ring.list(None, 0, 10, ())
    assert ([each.flow.wanted.port for each in some.flows], some.more) == (list(range(4990, 5000)), 990)
    ring.counted(counted(CLIENT, WEB, port, 1, 9000 - port, "ingress") for port in range(5000, 9000))
    assert [each.wanted.port for each in flows(ring)] == list(range(8000, 9000))


def test_answers_wait_for_a_report_that_is_on_its_way(plan: Plan) -> None:
    ring = RefusedRing(plan.ask)
    reports = [logged(CLIENT, WEB, 9090, "i-x")]
    late = threading.Timer(0.02, ring.reported, (reports, direction_of))
    late.start()
    ring.counted([counted(CLIENT, WEB, 9090, 2, 0.0, "ingress")], reports=True)
    late.join()
    (found,) = flows(ring)
    assert (found.source.port, found.packets) == (40000, 2)


def agent(plan: Plan, counts: Iterable[RefusedCount] = ()) -> RefusedFlows:
    def read(family: Family) -> list[RefusedCount]:
        return [each for each in counts if each.flow.family is family]

    return RefusedFlows(plan, ProxyConfig(node_name="n1", network_policy=True), read)


def test_the_answer_has_flows_of_both_families_and_honours_the_query(plan: Plan) -> None:
    flows = agent(
        plan,
        [
            counted(CLIENT, WEB, 9090, 1, 5.0, "ingress"),
            counted("fd00::1", "fd00::2", 9091, 1, 100.0, "ingress"),
        ],
    )
    found = msgspec.json.decode(flows.drops("").body, type=DropList)
    assert {each.flow.wanted.port for each in found.flows} == {9090, 9091}
    recent = msgspec.json.decode(flows.drops("since=30&most=5").body, type=DropList)
    assert [each.flow.wanted.port for each in recent.flows] == [9090]
    nothing = msgspec.json.decode(flows.drops(f"after={found.last}").body, type=DropList)
    assert (nothing.flows, nothing.last) == ((), found.last)


@pytest.mark.parametrize("query", ["since=x", "after=-1", "most=1e9", "since=" + "9" * 50, "after=1.2.3"])
def test_a_query_that_is_no_number_is_refused(plan: Plan, query: str) -> None:
    assert agent(plan).drops(query).status == HTTPStatus.BAD_REQUEST


def test_while_nothing_is_enforced_it_says_so(plan: Plan) -> None:
    plan.on = False
    flows = agent(plan)
    assert b"not enforced" in flows.drops("").body
    assert flows.policies("").status == HTTPStatus.CONFLICT


def test_before_the_first_lists_it_does_not_say_that_there_are_no_pods(plan: Plan) -> None:
    plan.waits = "the lists of these kinds: Pod"
    flows = agent(plan)
    for query in ("", "pod=shop/web"):
        answer = flows.policies(query)
        assert answer.status == HTTPStatus.BAD_REQUEST
        assert answer.body == (
            b"pods and policies are not known yet: kproxy waits for the lists of these kinds: Pod\n"
        )
    found = msgspec.json.decode(flows.drops("").body, type=DropList)
    assert found.notes == (
        "pods and policies are not known yet: kproxy waits for the lists of these kinds: Pod",
    )


def test_what_cannot_be_read_is_a_note(plan: Plan) -> None:
    def read(family: Family) -> list[RefusedCount]:
        raise OSError(1, "Operation not permitted")

    flows = RefusedFlows(plan, ProxyConfig(node_name="n1", network_policy=True), read)
    found = msgspec.json.decode(flows.drops("").body, type=DropList)
    assert found.notes[0] == "IPv4: the refused flows cannot be read: Operation not permitted"


def test_following_asks_for_what_is_new_and_survives_a_restart_of_the_agent() -> None:
    asked: list[tuple[float | None, int, int]] = []
    pauses: list[float] = []
    answers = [DropList(7, ()), DropList(9, ()), DropList(2, ()), DropList(2, ()), DropList(2, ())]

    def ask(since: float | None, after: int, most: int) -> DropList:
        asked.append((since, after, most))
        return answers.pop(0)

    coming = follow(600.0, ask, pauses.append)
    assert [next(coming).last for _ in range(4)] == [7, 9, 2, 2]
    assert asked == [(600.0, 0, 0), (None, 7, 200), (None, 9, 200), (None, 0, 200), (None, 2, 200)]
    assert len(pauses) == 3


@pytest.mark.parametrize("family", list(Family))
def test_keys_of_the_kernel_are_read_in_each_family(family: Family) -> None:
    ips = {
        Family.IPV4: (b"\x0a\x01\x00\x0a" + b"\x0a\x01\x00\x14", "10.1.0.10", "10.1.0.20"),
        Family.IPV6: (
            b"\xfd" + bytes(14) + b"\x01" + b"\xfd" + bytes(14) + b"\x02",
            "fd00::1",
            "fd00::2",
        ),
    }
    packed, source, destination = ips[family]
    tcp = packed + b"\x06\0\0\0" + b"\x1f\x90\0\0"
    assert decode_key(family, "ingress", tcp) == FlowKey(source, destination, 6, 8080, "ingress")
    ping = packed + b"\x01\0\0\0" + b"\x08\0\0\0"
    assert decode_key(family, "egress", ping) == FlowKey(source, destination, 1, 0, "egress")
    assert decode_key(family, "egress", tcp + bytes(4)) is None


def table(*groups: Group) -> PolicyTable:
    return PolicyTable(groups={each.name: each for each in groups})


def touched(*names: str) -> Touched:
    return Touched(groups=frozenset(names))


def values(counts: RefusedCounts, limit: int = 10) -> dict[tuple[str, ...], float]:
    return {each.labels: each.value for each in counts.samples(limit)}  # type: ignore[misc]


def test_counters_are_added_up_over_replaced_groups_and_both_families() -> None:
    kernel = {"i-1": 5, "i-2": 0, "e-3": 2}
    counts = RefusedCounts(lambda _family, names: {each: kernel[each] for each in names if each in kernel})
    one = Group("i-1", Direction.INGRESS, ("shop/a", "shop/b"))
    two = Group("i-2", Direction.INGRESS, ("shop/a",))
    three = Group("e-3", Direction.EGRESS, ("shop/a",))
    counts.planned(Family.IPV4, table(one, three), touched("i-1", "e-3"))
    expected = {
        ("a", "shop", "ingress"): 5.0,
        ("b", "shop", "ingress"): 5.0,
        ("a", "shop", "egress"): 2.0,
        (): 0,
    }
    assert values(counts) == expected
    kernel["i-1"] = 8
    counts.planned(Family.IPV4, table(two, three), touched("i-1", "i-2"))  # the chain of i-1 ends now
    del kernel["i-1"]
    kernel |= {"i-2": 4}
    counts.planned(Family.IPV6, table(two), touched("i-2"))
    expected |= {("a", "shop", "ingress"): 8.0 + 4 + 4, ("b", "shop", "ingress"): 8.0}
    assert values(counts) == expected
    kernel["i-2"] = 1  # both chains were written again
    assert values(counts)["a", "shop", "ingress"] == 18.0


def test_the_series_are_bounded_and_the_rest_is_counted() -> None:
    groups = [Group(f"i-{n}", Direction.INGRESS, (f"shop/p{n}",)) for n in range(20)]
    counts = RefusedCounts(lambda _family, names: {each: int(each[2:]) for each in names})
    counts.planned(Family.IPV4, table(*groups), touched(*(each.name for each in groups)))
    found = values(counts, 3)
    assert found == {
        ("p19", "shop", "ingress"): 19.0,
        ("p18", "shop", "ingress"): 18.0,
        ("p17", "shop", "ingress"): 17.0,
        (): 17,
    }


def test_what_the_kernel_does_not_tell_leaves_the_numbers_as_they_are() -> None:
    def read(_family: Family, _names: object) -> dict[str, int]:
        raise OSError(1, "Operation not permitted")

    counts = RefusedCounts(read)
    group = Group("i-1", Direction.INGRESS, ("shop/a",))
    counts.planned(Family.IPV4, table(group), touched("i-1"))
    counts.planned(Family.IPV4, table(), touched("i-1"))
    assert values(counts) == {(): 0}


@fresh_network
def test_its_thread_reads_reports_and_answers_root_while_it_is_on(plan: Plan) -> None:
    config = ProxyConfig(node_name="n1", network_policy=True)
    other = Nflog(GROUP)
    flows = RefusedFlows(plan, config, lambda _family: [], GROUP)
    stop = threading.Event()
    thread = threading.Thread(target=flows.run, args=(stop,))
    thread.start()
    try:
        found = until(lambda: fetch().notes)
        assert found[0].startswith(f"another program reads NFLOG group {GROUP}")
        other.close()
        flows.wake()
        until(lambda: not fetch().notes)
        flows.follow(msgspec.structs.replace(config, network_policy=False))
        until(lambda: not _answers())
        flows.follow(config)
        until(_answers)
    finally:
        stop.set()
        flows.wake()
        thread.join()
    assert not _answers()


def until(observe: Callable[[], T]) -> T:
    """Repeat an observation until it is true."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(AgentUnavailable):
            if found := observe():
                return found
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _answers() -> bool:
    try:
        fetch()
    except AgentUnavailable:
        return False
    return True
