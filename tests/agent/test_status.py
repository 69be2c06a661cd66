"""The status: as JSON it survives the way to a client, and as text it shows what is wrong."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.agent.http_server import Answer, HttpServer
from kproxy.agent.status import (
    Failure,
    FamilyStatus,
    Pending,
    RefusedMode,
    Repair,
    ServiceTrouble,
    Status,
    Watch,
    encode,
)
from kproxy.agent.status_client import StatusUnavailable, fetch
from kproxy.agent.status_screen import age, screen
from kproxy.state.problems import Problem

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)
AN_HOUR_AGO = NOW - timedelta(hours=1)
FINE = Status(
    version="0.1.0",
    node="node-a",
    mode="ipvs",
    since=NOW - timedelta(days=9),
    healthy=True,
    node_eligible=True,
    pending=Pending(0, 0, None),
    families={Family.IPV4: FamilyStatus(12, NOW - timedelta(seconds=5), None, [], {}, Repair())},
    problems=[],
    rejected=[],
    watches=[Watch("Service", synced=True, connected_since=NOW, consecutive_failures=0, last_error=None)],
)
TROUBLED = msgspec.structs.replace(
    FINE,
    healthy=False,
    node_eligible=False,
    pending=Pending(1, 2, 80.5),
    families={
        Family.IPV4: FamilyStatus(
            12,
            None,
            Failure(AN_HOUR_AGO, "locked: another program\nholds it"),
            [ServiceTrouble("ns/a", "line 3 failed", AN_HOUR_AGO)],
            {"ns/b": "the kernel has no scheduler mh, rr is used"},
            Repair(3, 2, AN_HOUR_AGO, ("chain nat/A is missing",)),
        )
    },
    problems=[Problem("Service ns/c", "spec.externalIPs", '"1.2.3.4"', "already belongs to ns/a")],
    rejected=[Problem("Service ns/d", "spec.ports[0].port", '"eighty"', "Expected `int`, got `str`")],
    watches=[Watch("Node", synced=True, connected_since=None, consecutive_failures=4, last_error="503")],
    refused_mode=RefusedMode(AN_HOUR_AGO, "nftables", "ipvs", "IPv6: no such\nexpression"),
)

FINE_TEXT = """\
kproxy 0.1.0 on node-a, mode ipvs, for 9d: healthy

FAMILY  SERVICES  LAST SUCCESS  LAST FAILURE  REPAIRED
IPv4    12        5s ago        -             -
"""
TROUBLED_TEXT = """\
kproxy 0.1.0 on node-a, mode ipvs, for 9d: BEHIND WITH ITS CHANGES
this node is going: load balancers are told so
mode nftables could not be taken 1h ago, ipvs stays: IPv6: no such expression
changes waiting: 1 of services, 2 of endpoints; the oldest for 80.5 s

FAMILY  SERVICES  LAST SUCCESS  LAST FAILURE                              REPAIRED
IPv4    12        never         1h ago: locked: another program holds it  2 of 3

refused by the kernel, tried again: 1
FAMILY  SERVICE  FOR  REASON
IPv4    ns/a     1h   line 3 failed

served, but not as asked for: 1
FAMILY  SERVICE  REASON
IPv4    ns/b     the kernel has no scheduler mh, rr is used

not obeyed: 1
OBJECT        FIELD             VALUE      REASON
Service ns/c  spec.externalIPs  "1.2.3.4"  already belongs to ns/a

not readable: 1
OBJECT        FIELD               VALUE     REASON
Service ns/d  spec.ports[0].port  "eighty"  Expected `int`, got `str`

watches that are down: 1
KIND  FAILURES  LAST ERROR
Node  4         503
"""


@pytest.mark.parametrize(("status", "text"), [(FINE, FINE_TEXT), (TROUBLED, TROUBLED_TEXT)])
def test_the_text_shows_what_runs_and_what_is_wrong(status: Status, text: str) -> None:
    assert screen(status, NOW) == text


@pytest.mark.parametrize("status", [FINE, TROUBLED])
def test_a_status_arrives_as_it_was_sent(status: Status) -> None:
    server = HttpServer(
        "test", "127.0.0.1:0", {"/status": lambda: Answer(encode(status), "application/json")}
    )
    server.start()
    try:
        assert fetch(f"127.0.0.1:{server.port}") == status
    finally:
        server.stop()
    assert (FINE.good, TROUBLED.good) == (True, False)


@pytest.mark.parametrize(
    "damage",
    [
        {"healthy": False},
        {"problems": TROUBLED.problems},
        {"rejected": TROUBLED.rejected},
        {"families": TROUBLED.families},
        {"refused_mode": TROUBLED.refused_mode},
    ],
    ids=str,
)
def test_each_trouble_alone_is_not_good(damage: dict[str, object]) -> None:
    assert not msgspec.structs.replace(FINE, **damage).good


@pytest.mark.parametrize("body", [b"ok", b"{}", b'{"version": 1}'])
def test_an_answer_that_is_no_status_is_named(body: bytes) -> None:
    server = HttpServer("test", "127.0.0.1:0", {"/status": lambda: Answer(body)})
    server.start()
    try:
        with pytest.raises(StatusUnavailable, match=rf"127\.0\.0\.1:{server.port}/status"):
            fetch(f"127.0.0.1:{server.port}")
    finally:
        server.stop()


def test_nobody_there_is_named(unused_port: int) -> None:
    with pytest.raises(StatusUnavailable, match="Connection refused"):
        fetch(f"127.0.0.1:{unused_port}")


@pytest.fixture
def unused_port() -> int:
    server = HttpServer("test", "127.0.0.1:0", {})
    server.start()
    port = server.port
    server.stop()
    return port


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86400 * 3 + 5, "3d")]
)
def test_ages_have_one_unit(seconds: int, text: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == text
