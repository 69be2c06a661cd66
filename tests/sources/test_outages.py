"""Everything a connection can do wrong, and that nothing is lost, invented, or asked for too often."""

import random
import threading
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from kproxy.sources.kubernetes import KubernetesSource, WatchStatus
from kproxy.state.kinds import Kind
from kproxy_lab.apiserver import ApiServer, Fault
from tests.sources.conftest import MakeSource
from tests.sources.objects import endpoint_slice, node, service
from tests.sources.recording import PATIENCE, RecordingSink, Running, wait_for_status

ALL = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)


def same_as_server(sink: RecordingSink, api: ApiServer) -> Callable[[], bool]:
    """Whether the sink holds what the server holds, down to the ports and addresses."""

    def compare() -> bool:
        services = {
            f"default/{each['metadata']['name']}": each["spec"]["ports"][0]["port"]
            for each in api.list("Service")
        }
        pieces = {
            f"default/{each['metadata']['name']}": [e["addresses"][0] for e in each["endpoints"]]
            for each in api.list("EndpointSlice")
        }
        held_services = {key: sink.service(key).spec.ports[0].port for key in sink.keys(Kind.SERVICE)}  # type: ignore[union-attr, index]
        held_pieces = {
            key: [ip for each in sink.piece(key).endpoints or () for ip in (each.addresses or ())[:1]]
            for key in sink.keys(Kind.ENDPOINT_SLICE)
        }
        return services == held_services and pieces == held_pieces

    return compare


def test_a_half_open_connection_is_given_up_after_the_inactivity_timeout(make_source: MakeSource) -> None:
    with ApiServer(bookmark_interval=0.05) as api, Running(make_source(api, inactivity_seconds=1.0)) as sink:
        sink.wait_listed(*ALL)
        assert api.wait_watchers(3)
        stalled = api.faults.add(Fault.stall(resource="services", verb="watch"))
        assert api.faults.wait(stalled)
        api.apply(service("during"), validate=False)
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/during"})
        assert sink.lists[Kind.SERVICE] == 1


def test_a_server_that_never_answers_is_given_up_too(make_source: MakeSource) -> None:
    with ApiServer(watch_list=False) as api:
        api.apply(service("a"), validate=False)
        api.faults.add(Fault.stall(resource="services", verb="list"))
        with Running(make_source(api, inactivity_seconds=0.3)) as sink:
            sink.wait_listed(Kind.SERVICE)
            assert sink.keys(Kind.SERVICE) == {"default/a"}


@pytest.mark.parametrize("keep", [True, False])
def test_a_restarted_server_loses_nothing(make_source: MakeSource, *, keep: bool) -> None:
    with ApiServer() as api:
        for name in "abc":
            api.apply(service(name), validate=False)
        with Running(make_source(api)) as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)

            def meanwhile() -> None:
                api.delete("Service", "default", "b")
                api.apply(service("d"), validate=False)

            api.restart(keep_history=keep, while_down=meanwhile)
            sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a", "default/c", "default/d"})
            assert (sink.lists[Kind.SERVICE] == 1) is keep
            assert sink.deletes() == (["default/b"] if keep else [])


@pytest.mark.parametrize("streamed", [True, False])
def test_a_server_restored_from_a_backup_is_listed_again(make_source: MakeSource, *, streamed: bool) -> None:
    with ApiServer(watch_list=streamed) as api:
        for n in range(50):
            api.apply(service(f"s{n}"), validate=False)
        with Running(make_source(api)) as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)
            port = api.port
            api.stop()
            with ApiServer(port=port, watch_list=streamed) as restored:
                restored.apply(service("s1"), validate=False)
                restored.apply(service("old"), validate=False)
                sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/s1", "default/old"})
                assert sink.deletes() == []


def test_an_outage_and_a_new_list_remove_nothing_that_still_exists(make_source: MakeSource) -> None:
    with ApiServer() as api:
        for n in range(20):
            api.apply(service(f"s{n}"), validate=False)
        with Running(make_source(api)) as sink:
            sink.wait_listed(*ALL)
            seen: list[int] = []
            for _ in range(5):
                times = sink.lists[Kind.SERVICE] + 1
                api.faults.add(Fault.status(503, resource="services", times=2))
                api.faults.add(Fault.watch_error(410, resource="services"))
                sink.wait_listed(Kind.SERVICE, times=times)
                seen.append(len(sink.keys(Kind.SERVICE)))
            assert seen == [20] * 5
            assert sink.deletes() == []


def test_retry_after_is_honoured(make_source: MakeSource) -> None:
    with ApiServer(watch_list=False) as api:
        api.faults.add(Fault.status(429, resource="services", verb="list", retry_after=1))
        with Running(make_source(api)) as sink:
            sink.wait_listed(Kind.SERVICE)
        first, second = api.requests.matching(resource="services", verb="list")[:2]
        assert first.status == 429
        assert second.at - first.at >= 1.0


@pytest.mark.parametrize(
    "fault",
    [
        Fault.truncate(0, resource="services", verb="watch", times=None),
        Fault.close(resource="services", verb="watch", times=None),
        Fault.garbage(resource="services", verb="watch", times=None),
        Fault.status(500, resource="services", verb="watch", times=None),
        Fault.watch_error(500, resource="services", times=None),
    ],
)
def test_a_server_that_ends_every_watch_at_once_is_not_stormed(make_source: MakeSource, fault: Fault) -> None:
    with ApiServer(watch_list=False) as api:
        api.faults.add(fault)
        source = make_source(api, streamed_list=False, backoff_seconds=1e6, backoff_max_seconds=1e6)
        with capture_logs() as logs, Running(source) as sink:
            sink.wait_listed(*ALL)
            wait_for_failure(source)
            assert len(api.requests.matching(resource="services", verb="watch")) == 1
        lost = [each for each in logs if each["event"] == "watch_lost" and each.get("kind") == "Service"]
        assert len([each for each in lost if each["log_level"] == "warning"]) == 1
        assert lost[0]["retry_seconds"] > 0


def wait_for_failure(source: KubernetesSource) -> None:
    wait_for_status(source, lambda each: each.kind is Kind.SERVICE and each.consecutive_failures)


def test_a_long_outage_is_logged_when_it_begins_when_it_ends_and_seldom_between(
    make_source: MakeSource,
) -> None:
    with ApiServer() as api:
        with capture_logs() as logs, Running(make_source(api, node=None)) as sink:
            sink.wait_listed(Kind.SERVICE)
            fault = api.faults.add(Fault.close(resource="services", times=None))
            assert api.faults.wait(fault, hits=40, timeout=PATIENCE)
            api.faults.remove(fault)
            api.apply(service("after"), validate=False)
            sink.wait(lambda: "default/after" in sink.keys(Kind.SERVICE))
        ours = [each for each in logs if each.get("kind") == "Service" and each["log_level"] != "debug"]
        events = [each["event"] for each in ours]
        assert events[0] == "list_complete"
        assert events[1] == "watch_lost"
        assert ours[1]["failures"] == 1
        assert 3 <= events.count("watch_lost") <= 7
        assert events.count("watch_restored") == 1
        assert events[-1] == "watch_restored"


def test_status_has_the_state_of_each_watch(make_source: MakeSource) -> None:
    with ApiServer() as api:
        source = make_source(api, backoff_seconds=1e6, backoff_max_seconds=1e6)
        assert {(each.kind, each.synced, each.connected_since) for each in source.status()} == {
            (kind, False, None) for kind in ALL
        }
        with Running(source) as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)
            api.apply(service("a"), validate=False)
            sink.wait(lambda: sink.keys(Kind.SERVICE))
            up = source.status()[0]
            assert up.kind is Kind.SERVICE
            assert up.synced
            assert up.connected_since is not None
            assert (up.consecutive_failures, up.last_error) == (0, None)
            api.faults.add(Fault.close(resource="services", times=None))
            wait_for_failure(source)
            down = source.status()[0]
            assert down.synced
            assert down.connected_since is None
            assert down.consecutive_failures == 1
            assert "connection" in str(down.last_error)


@pytest.mark.parametrize(
    "fault",
    [
        None,
        Fault.status(500, times=None),
        Fault.stall(verb="list", times=None),
        Fault.stall(verb="watch", times=None),
        Fault.slow(1, 0.05, times=None),
        Fault.refuse(),
    ],
)
def test_a_stop_interrupts_whatever_is_being_waited_for(make_source: MakeSource, fault: Fault | None) -> None:
    """Waits here are days; if one were not interrupted, leaving the block would fail."""
    for streamed in (True, False):
        with ApiServer(watch_list=streamed) as api:
            api.apply(service("a"), validate=False)
            source = make_source(
                api, backoff_seconds=1e6, backoff_max_seconds=1e6, inactivity_seconds=1e5, page_seconds=1e5
            )
            armed = api.faults.add(fault) if fault is not None else None
            with Running(source) as sink:
                if armed is None:
                    sink.wait_listed(*ALL)
                    assert api.wait_watchers(3)
                elif armed.fault.verb == "list" and streamed:
                    sink.wait_listed(*ALL)
                elif armed.fault.times is None and armed.fault.code == 500 and fault != Fault.refuse():
                    assert api.faults.wait(armed, hits=1)
                else:
                    wait_for_failure(source)
            api.faults.clear()


class BrokenSink(RecordingSink):
    """A sink with a defect that shows once."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = True

    def upsert(self, kind: Kind, obj: object) -> None:
        if self.broken:
            self.broken = False
            raise RuntimeError("a defect")
        super().upsert(kind, obj)  # type: ignore[arg-type]


def test_a_defect_in_the_sink_ends_in_a_new_list_not_in_silence(make_source: MakeSource) -> None:
    with ApiServer() as api:
        running = Running(make_source(api))
        running.sink = BrokenSink()
        with running as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)
            api.apply(service("a"), validate=False)
            sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a"})


def random_fault(chance: random.Random) -> Fault:
    resource = chance.choice(["services", "endpointslices"])
    verb = chance.choice(["list", "watch", "watch"])
    cut = chance.choice([0, chance.randrange(1, 60), chance.randrange(1, 3000)])
    return chance.choice(
        [
            Fault.close(resource=resource, verb=verb, after_bytes=cut),
            Fault.truncate(cut, resource=resource, verb=verb),
            Fault.garbage(resource=resource, verb=verb),
            Fault.status(
                chance.choice([410, 429, 500, 503, 504]),
                resource=resource,
                verb=verb,
                times=chance.randint(1, 3),
            ),
            Fault.watch_error(chance.choice([410, 500]), resource=resource),
            Fault.stall(resource=resource, verb=verb, after_bytes=cut),
            Fault.slow(chance.randint(50, 500), 0.001, resource=resource, verb=verb),
        ]
    )


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_faults_and_changes_end_in_the_servers_state(
    make_source: MakeSource, seed: int, *, streamed: bool
) -> None:
    chance = random.Random(f"{seed}-{streamed}")
    with ApiServer(watch_list=streamed, bookmark_interval=0.05, history=200) as api:
        lasting = {f"default/lasting-{n}" for n in range(20)}
        created = set(lasting)
        api.apply_many([service(f"lasting-{n}") for n in range(20)], validate=False)
        source = make_source(
            api,
            page_size=7,
            inactivity_seconds=0.5,
            streamed_list_idle_seconds=0.5,
            streamed_list_retry_seconds=0.2,
        )
        with Running(source) as sink:
            for step in range(300):
                action = chance.random()
                name = f"s{chance.randrange(30)}"
                if action < 0.35:
                    created.add(f"default/{name}")
                    api.apply(service(name, port=step + 1), validate=False)
                elif action < 0.6:
                    addresses = [f"10.0.{step % 200}.{n + 1}" for n in range(chance.randrange(4))]
                    created.add(f"default/{name}-1")
                    api.apply(endpoint_slice(name, addresses), validate=False)
                elif action < 0.75:
                    api.delete("Service", "default", name)
                elif action < 0.85:
                    api.delete("EndpointSlice", "default", f"{name}-1")
                elif action < 0.97:
                    api.faults.add(random_fault(chance))
                elif action < 0.98:
                    api.compact()
                elif action < 0.99:
                    api.drop_watches()
                else:
                    api.restart(keep_history=chance.random() < 0.5)
                if step % 10 == 0:
                    threading.Event().wait(chance.random() / 20)
            sink.wait(same_as_server(sink, api), "the server's state")
            told = {what for verb, _, what in sink.history if verb in ("upsert", "delete")}
            assert told <= created
            assert lasting <= sink.keys(Kind.SERVICE)
            assert not lasting & sink.vanished
        assert not sink.problems


def test_the_node_follows_its_own_watch(make_source: MakeSource) -> None:
    with ApiServer() as api, Running(make_source(api)) as sink:
        sink.wait_listed(Kind.NODE)
        assert not sink.keys(Kind.NODE)
        api.apply(node("n1"), validate=False)
        sink.wait(lambda: sink.keys(Kind.NODE) == {"n1"})
        api.delete("Node", "", "n1")
        sink.wait(lambda: not sink.keys(Kind.NODE))


@pytest.mark.parametrize(
    "fault",
    [
        Fault.refuse(),
        Fault.close(resource="services", verb="watch", times=None),
        Fault.status(500, resource="services", verb="watch", times=None),
        Fault.watch_error(500, resource="services", times=None),
    ],
    ids=lambda fault: fault.action.value,
)
def test_a_watch_is_down_from_its_loss_until_one_holds(make_source: MakeSource, fault: Fault) -> None:
    """Connections that break at once do not count in between."""

    def down(failures: int) -> Callable[[WatchStatus], bool]:
        return lambda status: (
            status.kind is Kind.SERVICE
            and status.down_since is not None
            and status.consecutive_failures >= failures
        )

    with ApiServer(watch_list=False) as api:
        source = make_source(api, streamed_list=False)
        with Running(source) as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)
            before = time.time()
            with api.faults.during(fault):
                api.drop_connections()
                first = wait_for_status(source, down(1))
                later = wait_for_status(source, down(5))
            assert first.down_since is not None
            assert before <= first.down_since == later.down_since
            assert later.last_error
            api.apply(service("after"), validate=False)
            up = wait_for_status(
                source, lambda status: status.kind is Kind.SERVICE and status.down_since is None
            )
            assert up.connected_since is not None


def test_a_watch_is_down_until_its_first_connection(make_source: MakeSource) -> None:
    with ApiServer() as api:
        source = make_source(api)
        assert all(status.down_since is not None for status in source.status())
        with Running(source) as sink:
            sink.wait_listed(*ALL)
            wait_for_status(source, lambda status: status.down_since is None)
