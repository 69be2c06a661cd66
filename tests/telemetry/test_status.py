"""The status: as JSON it survives the way to a client, and as text it shows what is wrong."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.config.refusals import RefusedMode, RefusedSetting, RejectedConfiguration
from kproxy.state.problems import Problem
from kproxy.telemetry.http.server import Answer, HttpServer
from kproxy.telemetry.status import (
    Condition,
    Failure,
    FamilyStatus,
    Pending,
    PolicyFamilyStatus,
    PolicyStatus,
    QuarantinedPolicy,
    QuarantinedService,
    RejectedPolicy,
    Repair,
    Status,
    Watch,
    encode,
)
from kproxy.telemetry.status_client import StatusUnavailable, fetch, wait
from kproxy.telemetry.status_screen import age, screen
from kproxy.telemetry.verdict import State

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
    state=State.HEALTHY,
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
            [QuarantinedService("ns/a", "line 3 failed", AN_HOUR_AGO)],
            {"ns/b": "the kernel has no scheduler mh, rr is used"},
            Repair(3, 2, AN_HOUR_AGO, ("chain nat/A is missing",)),
        )
    },
    problems=[Problem("Service ns/c", "spec.externalIPs", '"1.2.3.4"', "already belongs to ns/a")],
    rejected=[Problem("Service ns/d", "spec.ports[0].port", '"eighty"', "Expected `int`, got `str`")],
    watches=[
        Watch(
            "Node",
            synced=True,
            connected_since=None,
            consecutive_failures=4,
            last_error="503",
            down_since=AN_HOUR_AGO,
        )
    ],
    refused_mode=RefusedMode(AN_HOUR_AGO, "nftables", "ipvs", "IPv6: no such\nexpression"),
    state=State.FAILING,
    live=False,
    conditions=[Condition("SyncFailing", "IPv4: the last sync failed: locked", AN_HOUR_AGO)],
    rejected_configuration=RejectedConfiguration(AN_HOUR_AGO, "/c.conf", ["/c.conf: mode: 7 is not a text"]),
)

FINE_TEXT = """\
kproxy 0.1.0 on node-a, mode ipvs, for 9d: healthy

FAMILY  SERVICES  LAST SUCCESS  LAST FAILURE  REPAIRED
IPv4    12        5s ago        -             -
"""
TROUBLED_TEXT = """\
kproxy 0.1.0 on node-a, mode ipvs, for 9d: UNHEALTHY: changes are not applied in time
node is being deleted; /healthz answers 503
mode nftables was refused 1h ago, ipvs stays: IPv6: no such expression
configuration was rejected 1h ago, the former one stays: /c.conf
  /c.conf: mode: 7 is not a text
changes waiting: 1 of services, 2 of endpoints; the oldest for 80.5 s

FAMILY  SERVICES  LAST SUCCESS  LAST FAILURE                              REPAIRED
IPv4    12        never         1h ago: locked: another program holds it  2 of 3

reasons: 1
REASON       FOR  MESSAGE
SyncFailing  1h   IPv4: the last sync failed: locked

watches that are down: 1
KIND  FOR  FAILURES  LAST ERROR
Node  1h   4         503

quarantined, tried again: 1
FAMILY  SERVICE  FOR  REASON
IPv4    ns/a     1h   line 3 failed

degraded: 1
FAMILY  SERVICE  REASON
IPv4    ns/b     the kernel has no scheduler mh, rr is used

invalid fields ignored: 1
OBJECT        FIELD             VALUE      REASON
Service ns/c  spec.externalIPs  "1.2.3.4"  already belongs to ns/a

rejected objects: 1
OBJECT        FIELD               VALUE     REASON
Service ns/d  spec.ports[0].port  "eighty"  Expected `int`, got `str`
"""


@pytest.mark.parametrize(("status", "text"), [(FINE, FINE_TEXT), (TROUBLED, TROUBLED_TEXT)])
def test_the_text_shows_what_runs_and_what_is_wrong(status: Status, text: str) -> None:
    assert screen(status, NOW) == text


def test_leftovers_and_watches_that_never_began_are_shown() -> None:
    up = FINE.watches[0]
    families = {
        Family.IPV6: msgspec.structs.replace(
            FINE.families[Family.IPV4], leftovers={"set KUBE-LOOP": "it is in use"}
        )
    }
    watches = [
        up,
        msgspec.structs.replace(up, kind="Node", connected_since=None, consecutive_failures=2),
        msgspec.structs.replace(up, kind="EndpointSlice", down_since=AN_HOUR_AGO, last_error="reset"),
    ]
    text = screen(msgspec.structs.replace(FINE, families=families, watches=watches), NOW)
    assert (
        text.partition("\n\n")[2].partition("\n\n")[2]
        == """\
watches that are down: 2
KIND           FOR  FAILURES  LAST ERROR
Node           -    2
EndpointSlice  1h   0         reset

leftovers, deletion is tried again: 1
FAMILY  OBJECT         REASON
IPv6    set KUBE-LOOP  it is in use
"""
    )


ENFORCING = msgspec.structs.replace(
    FINE,
    network_policy=PolicyStatus(
        enabled=True,
        policies=7,
        isolated_pods=3,
        isolated={"ingress": 3, "egress": 1},
        rejected=[RejectedPolicy("shop/bad", "spec.ingress[0].ports[0].port=70000: must be 1 to 65535")],
        quarantined=[QuarantinedPolicy("shop/web", Family.IPV6, "no space", AN_HOUR_AGO)],
        families={
            Family.IPV4: PolicyFamilyStatus(2, NOW - timedelta(seconds=5), None, Repair(4, 4)),
            Family.IPV6: PolicyFamilyStatus(0, None, Failure(AN_HOUR_AGO, "busy"), Repair()),
        },
        unknown_pods="hold",
        gaps=["br_netfilter is not\nloaded"],
    ),
    refused_setting=RefusedSetting(AN_HOUR_AGO, "KproxyConfiguration x.y", "the kernel\ncannot"),
)
ENFORCING_TEXT = """\
kproxy 0.1.0 on node-a, mode ipvs, for 9d: healthy; findings about objects: 2
KproxyConfiguration x.y was refused 1h ago, the old value stays: the kernel cannot

FAMILY  SERVICES  LAST SUCCESS  LAST FAILURE  REPAIRED
IPv4    12        5s ago        -             -

network policies: 7; isolated pods here: 3 (3 ingress, 1 egress)
not judged: br_netfilter is not loaded
FAMILY  GROUPS  LAST SUCCESS  LAST FAILURE  REPAIRED
IPv4    2       5s ago        -             4 of 4
IPv6    0       never         1h ago: busy  -

rejected policies, their pods are closed: 1
POLICY    REASON
shop/bad  spec.ingress[0].ports[0].port=70000: must be 1 to 65535

quarantined policies, their pods are closed: 1
FAMILY  POLICY    FOR  REASON
IPv6    shop/web  1h   no space
"""


def test_the_text_shows_the_enforcement_of_policies() -> None:
    assert screen(ENFORCING, NOW) == ENFORCING_TEXT


@pytest.mark.parametrize("status", [FINE, TROUBLED, ENFORCING])
def test_a_status_arrives_as_it_was_sent(status: Status) -> None:
    server = HttpServer(
        "test", "127.0.0.1:0", {"/status": lambda: Answer(encode(status), "application/json")}
    )
    server.start()
    try:
        assert fetch(f"127.0.0.1:{server.port}") == status
    finally:
        server.stop()


FINDINGS_ONLY = {Family.IPV4: msgspec.structs.replace(FINE.families[Family.IPV4], degraded={"a": "no mh"})}
QUARANTINED = {
    Family.IPV4: msgspec.structs.replace(
        FINE.families[Family.IPV4], quarantined=[QuarantinedService("ns/a", "line 3 failed", AN_HOUR_AGO)]
    )
}


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ({}, 0),
        ({"healthy": False}, 1),
        ({"refused_mode": TROUBLED.refused_mode}, 1),
        ({"rejected_configuration": TROUBLED.rejected_configuration}, 1),
        ({"refused_setting": ENFORCING.refused_setting}, 1),
        ({"network_policy": ENFORCING.network_policy}, 3),
        ({"problems": TROUBLED.problems}, 3),
        ({"rejected": TROUBLED.rejected}, 3),
        ({"families": FINDINGS_ONLY}, 3),
        ({"families": QUARANTINED}, 3),
        ({"healthy": False, "problems": TROUBLED.problems}, 1),
        ({"node_eligible": False}, 0),
        ({"conditions": [Condition("EbpfDegraded", "no bpffs", AN_HOUR_AGO)]}, 3),
        ({"conditions": [Condition("WatchDown", "no answer", AN_HOUR_AGO)], "healthy": False}, 1),
    ],
    ids=str,
)
def test_defects_of_objects_have_an_exit_code_of_their_own(damage: dict[str, object], code: int) -> None:
    status = msgspec.structs.replace(FINE, **damage)
    assert (status.exit_code, status.good) == (code, code == 0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"problems": TROUBLED.problems}, "healthy; findings about objects: 1"),
        ({"healthy": False, "state": State.STARTING}, "STARTING"),
        ({"healthy": False, "state": State.DEGRADED}, "DEGRADED"),
        ({"healthy": False, "state": State.FAILING}, "FAILING"),
        ({"healthy": False, "state": None}, "UNHEALTHY: changes are not applied in time"),
    ],
)
def test_the_first_line_has_the_verdict(damage: dict[str, object], words: str) -> None:
    first = screen(msgspec.structs.replace(FINE, **damage), NOW).splitlines()[0]
    assert first.endswith(f"for 9d: {words}")


def test_a_node_without_an_object_is_not_called_deleted() -> None:
    status = msgspec.structs.replace(FINE, node_eligible=False, node_reason="Node object is not found")
    assert screen(status, NOW).splitlines()[1] == "Node object is not found; /healthz answers 503"


class Clock:
    """Time that passes only in pauses."""

    def __init__(self, *answers: Status | None) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._answers = list(answers)

    def ask(self, address: str, seconds: float) -> Status:
        assert address == "a:1"
        assert 0 < seconds <= 10
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if found is None:
            raise StatusUnavailable("connection refused")
        return found

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def wait(self, seconds: float) -> Status:
        return wait("a:1", seconds, self.ask, lambda: self.now, self.pause)


STARTING = msgspec.structs.replace(FINE, healthy=False, state=State.STARTING)


def test_a_wait_ends_when_the_agent_is_healthy() -> None:
    assert Clock(FINE).wait(0) == FINE
    later = Clock(None, STARTING, STARTING, FINE)
    assert later.wait(60) == FINE
    assert later.pauses == [0.1, 0.2, 0.4]
    found = msgspec.structs.replace(FINE, problems=TROUBLED.problems)
    assert Clock(found).wait(60) == found


def test_a_wait_ends_with_its_time_and_does_not_ask_all_the_time() -> None:
    never = Clock(STARTING)
    assert never.wait(60) == STARTING
    assert 58 < never.now <= 60
    assert len(never.pauses) < 70
    nobody = Clock(None)
    with pytest.raises(StatusUnavailable):
        nobody.wait(5)
    assert 3 < nobody.now <= 5
    assert Clock(STARTING).wait(0) == STARTING


def test_a_status_of_an_older_agent_is_read() -> None:
    old = msgspec.json.decode(encode(FINE))
    for name in ("state", "live", "conditions", "rejectedConfiguration"):
        del old[name]
    read = msgspec.json.decode(msgspec.json.encode(old), type=Status)
    assert (read.exit_code, screen(read, NOW)) == (0, FINE_TEXT)


@pytest.mark.parametrize("body", [b"ok", b"{}", b'{"version": 1}'])
def test_an_answer_that_is_no_status_is_named(body: bytes) -> None:
    server = HttpServer("test", "127.0.0.1:0", {"/status": lambda: Answer(body)})
    server.start()
    try:
        with pytest.raises(StatusUnavailable, match=rf"127\.0\.0\.1:{server.port}/status"):
            fetch(f"127.0.0.1:{server.port}")
    finally:
        server.stop()


def test_an_address_without_an_agent_is_named(unused_port: int) -> None:
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
