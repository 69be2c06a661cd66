"""Which connections are judged after a change, which of them end, and what happens when that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.agent.policy import connections as module
from kproxy.agent.policy.connections import PolicyConnections
from kproxy.kernel.conntrack.connections import Connection
from kproxy.kernel.conntrack.types import ConntrackError
from kproxy.kernel.nft.types import NftError, NftFailure
from kproxy.plan.policy.model import Touched
from kproxy.plan.policy.planner import PolicyPlanner
from tests.state.policy_objects import namespace, pod, policy

V4, V6 = Family.IPV4, Family.IPV6
T = TypeVar("T")
WEB, DB, FAR, NODE = "10.1.0.1", "10.1.0.2", "10.2.0.1", "192.168.0.1"
FROM_DB = [{"podSelector": {"matchLabels": {"app": "db"}}}]
ONLY_DB = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": FROM_DB}]}


def tcp(source: str, server: str, port: int = 80, service: str = "", protocol: int = 6) -> Connection:
    return Connection(protocol, source, 40000, service or server, port, server, port, source, 40000)


class FakeConnections:
    """Connection tracking in memory; `asked` are the addresses of each reading."""

    def __init__(self, *held: Connection) -> None:
        self.held = list(held)
        self.asked: list[frozenset[str]] = []
        self.failures = 0
        self.read = threading.Semaphore(0)

    def of(self, family: Family, addresses: Collection[str]) -> list[Connection]:
        self.asked.append(frozenset(addresses))
        self.read.release()
        if self.failures:
            self.failures -= 1
            raise ConntrackError("conntrack: cannot read connections: no buffer space")
        return [each for each in self.held if {each.source, each.server} & set(addresses)]

    def delete(self, family: Family, connections: Sequence[Connection]) -> int:
        for each in connections:
            self.held.remove(each)
        return len(connections)


class Rig:
    def __init__(self, *held: Connection) -> None:
        self.planner = PolicyPlanner("n1", (V4, V6))
        self.tracked = FakeConnections(*held)
        self.marked: list[Connection] = []
        self.counted: list[tuple[Family, int]] = []
        self.keep = False
        self.mark_error: NftError | None = None
        self.work = PolicyConnections(
            lambda: self.tracked,
            self.ask,
            lambda: self.keep,
            self.mark,
            lambda *each: self.counted.append(each),
            lambda: [NODE],
        )
        self.touch(
            pods=(pod("web", WEB, labels={"app": "web"}), pod("db", DB, labels={"app": "db"})),
            namespaces=(namespace("shop"),),
        )

    def ask(self, question: Callable[[PolicyPlanner], T], /) -> T:
        return question(self.planner)

    def mark(self, _family: Family, connections: Sequence[Connection]) -> None:
        if self.mark_error is not None:
            raise self.mark_error
        self.marked += connections

    def touch(self, **objects: Collection[Any]) -> Touched:
        """Plan objects, and return what that touches in IPv4."""
        given: Mapping[str, Any] = {
            kind: {f"{o.metadata.namespace}/{o.metadata.name}" if kind != "namespaces" else o.metadata.name: o
                   for o in objects.get(kind, ())}
            for kind in ("pods", "namespaces", "policies")
        }  # fmt: skip
        return self.planner.update(**given)[V4]

    def apply(self, touched: Touched) -> bool:
        return self.work.end_forbidden(self.tracked, V4, touched)


FORBIDDEN = (tcp(FAR, WEB), tcp(FAR, WEB, service="10.96.0.1"), tcp("192.0.2.1", WEB, protocol=17))
PING = tcp(FAR, WEB, 0, protocol=1)
ALLOWED = (tcp(DB, WEB), tcp(WEB, FAR), tcp(NODE, WEB), tcp(DB, WEB, 0, protocol=1), tcp(FAR, DB))


def test_what_a_new_policy_forbids_ends_and_nothing_else() -> None:
    rig = Rig(PING, *FORBIDDEN, *ALLOWED)
    assert rig.apply(rig.touch(policies=(policy("web", ONLY_DB),)))
    assert rig.tracked.held == list(ALLOWED)
    assert rig.tracked.asked == [frozenset({WEB})]
    assert rig.marked == list(FORBIDDEN)
    assert rig.counted == [(V4, 4)]


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        ({}, True),
        ({"from": [{"ipBlock": {"cidr": "10.2.0.0/16"}}]}, True),
        ({"from": [{"ipBlock": {"cidr": "10.2.0.0/16", "except": ["10.2.0.0/24"]}}]}, False),
        ({"from": FROM_DB}, False),
        ({"ports": [{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]}, False),
    ],
    ids=("everything", "block", "exception", "pods", "ports"),
)
def test_a_ping_goes_on_where_a_rule_without_ports_allows_it(rule: object, *, stays: bool) -> None:
    rig = Rig(PING)
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]}
    assert rig.apply(rig.touch(policies=(policy("web", spec),)))
    assert (rig.tracked.held == [PING]) is stays


def test_a_peer_that_is_selected_no_longer_loses_its_connections() -> None:
    rig = Rig(tcp(DB, WEB))
    rig.touch(policies=(policy("web", ONLY_DB),))
    touched = rig.touch(pods=(pod("db", DB, labels={"app": "other"}),))
    assert rig.apply(touched)
    assert rig.tracked.held == []
    assert WEB in rig.tracked.asked[0]


def test_a_change_that_concerns_no_pod_of_this_node_reads_nothing() -> None:
    rig = Rig(*FORBIDDEN)
    assert rig.apply(rig.touch(pods=(pod("far", FAR, node="n2"),)))
    assert rig.apply(Touched())
    assert rig.tracked.asked == []


def test_connections_are_kept_where_the_settings_say_so() -> None:
    rig = Rig(*FORBIDDEN)
    rig.keep = True
    assert rig.apply(rig.touch(policies=(policy("web", ONLY_DB),)))
    assert (rig.tracked.asked, len(rig.tracked.held)) == ([], 3)


def test_they_end_although_their_answers_cannot_be_refused() -> None:
    rig = Rig(*FORBIDDEN)
    rig.mark_error = NftError(NftFailure.REFUSED, "set ended is full")
    with capture_logs() as logs:
        assert rig.apply(rig.touch(policies=(policy("web", ONLY_DB),)))
    assert rig.tracked.held == []
    assert [each["reason"] for each in logs if each["event"] == "answers_not_refused"] == [
        "set ended is full"
    ]


def test_the_thread_tries_again_after_a_failure_and_ends_with_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.0)
    rig = Rig(*FORBIDDEN)
    rig.tracked.failures = 1
    stop = threading.Event()
    thread = threading.Thread(target=rig.work.run, args=(stop,))
    thread.start()
    with capture_logs() as logs:
        rig.work.submit(V4, rig.touch(policies=(policy("web", ONLY_DB),)))
        for _ in range(2):
            assert rig.tracked.read.acquire(timeout=10)
        stop.set()
        rig.work.wake()
        thread.join(10)
    assert not thread.is_alive()
    assert rig.tracked.asked == [frozenset({WEB})] * 2
    assert "no buffer space" in logs[0]["reason"]
