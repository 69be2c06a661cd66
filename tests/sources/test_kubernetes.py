"""Lists and watches against the embedded API server: what arrives, and how it was asked for."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.state.kinds import Kind
from kproxy_lab.apiserver import ApiServer, Fault
from tests.sources.conftest import MakeSource
from tests.sources.objects import endpoint_slice, node, service
from tests.sources.recording import Running, wait_for_status

ALL = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)


def fill(api: ApiServer, count: int) -> set[str]:
    api.apply_many([service(f"s{n}", f"10.96.0.{n + 1}") for n in range(count)], validate=False)
    return {f"default/s{n}" for n in range(count)}


@pytest.mark.parametrize("streamed", [True, False])
def test_the_first_lists_and_what_changes_after_them(make_source: MakeSource, *, streamed: bool) -> None:
    with ApiServer(watch_list=streamed) as api:
        expected = fill(api, 7)
        api.apply(endpoint_slice("s0", ["10.0.0.1"]), validate=False)
        api.apply(node("n1"), validate=False)
        api.apply(node("n2"), validate=False)
        with capture_logs() as logs, Running(make_source(api, page_size=3)) as sink:
            sink.wait_listed(*ALL)
            assert sink.keys(Kind.SERVICE) == expected
            assert sink.keys(Kind.ENDPOINT_SLICE) == {"default/s0-1"}
            assert sink.keys(Kind.NODE) == {"n1"}
            assert [verb for verb, _, _ in sink.history] == ["replace"] * 3
            assert api.wait_watchers(3)
            api.delete("Service", "default", "s0")
            api.apply(service("new"), validate=False)
            api.apply(endpoint_slice("s0", ["10.0.0.1", "10.0.0.2"]), validate=False)
            api.apply(node("n1", "z2"), validate=False)
            api.apply(node("n2", "z2"), validate=False)
            sink.wait(lambda: sink.keys(Kind.SERVICE) == expected - {"default/s0"} | {"default/new"})
            sink.wait(lambda: len(sink.piece("default/s0-1").endpoints or ()) == 2)
            sink.wait(lambda: ("upsert", Kind.NODE, "n1") in sink.history)
            assert ("upsert", Kind.NODE, "n2") not in sink.history
        lists = [each for each in logs if each["event"] == "list_complete"]
        assert {each["kind"]: each["objects"] for each in lists} == {
            "Service": 7,
            "EndpointSlice": 1,
            "Node": 1,
        }
        assert {each["mode"] for each in lists} == {"streamed" if streamed else "paged"}
        pages = api.requests.matching(resource="services", verb="list", status=200)
        assert [each.query["limit"] for each in pages] == ([] if streamed else ["3"] * 3)


def test_the_server_filters_as_for_kube_proxy(make_source: MakeSource) -> None:
    with ApiServer() as api:
        headless, foreign = service("headless", "None"), service("foreign")
        foreign["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "cilium"}
        hidden = endpoint_slice("a", ["10.0.0.1"], "hidden", **{"service.kubernetes.io/headless": ""})
        for each in (headless, foreign, service("a"), hidden, endpoint_slice("a", ["10.0.0.2"])):
            api.apply(each, validate=False)
        with Running(make_source(api)) as sink:
            sink.wait_listed(*ALL)
            assert sink.keys(Kind.SERVICE) == {"default/a"}
            assert sink.keys(Kind.ENDPOINT_SLICE) == {"default/a-1"}
            given_away = service("a")
            given_away["metadata"]["labels"] = foreign["metadata"]["labels"]
            api.apply(given_away, validate=False)
            sink.wait(lambda: not sink.keys(Kind.SERVICE))
        asked = {
            each.resource: (each.query.get("labelSelector"), each.query.get("fieldSelector"))
            for each in api.requests.all()
        }
        assert asked == {
            "services": ("!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"),
            "endpointslices": ("!service.kubernetes.io/headless", None),
            "nodes": (None, "metadata.name=n1"),
        }


def test_without_a_node_name_nodes_are_not_asked_for(make_source: MakeSource) -> None:
    with ApiServer() as api, Running(make_source(api, node=None)) as sink:
        sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE)
        assert not api.requests.matching(resource="nodes")


def test_a_refused_streamed_list_is_not_tried_again_at_every_list(make_source: MakeSource) -> None:
    with ApiServer(watch_list=False) as api:
        with Running(make_source(api)) as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)
            api.faults.add(Fault.watch_error(410, resource="services"))
            sink.wait_listed(Kind.SERVICE, times=2)
        tried = [
            each for each in api.requests.matching(resource="services") if "sendInitialEvents" in each.query
        ]
        assert len(tried) == 1


def test_bookmarks_move_the_version_from_which_a_watch_goes_on(make_source: MakeSource) -> None:
    with ApiServer(bookmark_interval=0.02) as api:
        source = make_source(api)
        with Running(source) as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)
            for n in range(5):
                api.apply(node(f"other-{n}"), validate=False)
            reached = api.revision
            seen = api.requests.matching(resource="services", verb="watch")
            assert all(int(each.query.get("resourceVersion", "0")) < reached for each in seen)
            wait_for_status(
                source, lambda each: each.kind is Kind.SERVICE and int(each.resource_version or 0) >= reached
            )
            api.drop_watches("services")
            assert api.requests.wait(
                resource="services",
                verb="watch",
                where=lambda each: int(each.query.get("resourceVersion", "0")) >= reached,
            )
            assert sink.lists[Kind.SERVICE] == 1


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "fault",
    [Fault.watch_error(410, resource="services"), Fault.status(410, resource="services", verb="watch")],
)
def test_410_leads_to_a_list_that_yields_the_right_deletes(
    make_source: MakeSource, fault: Fault, *, streamed: bool
) -> None:
    with ApiServer(watch_list=streamed) as api:
        expected = fill(api, 4)
        with Running(make_source(api)) as sink:
            sink.wait_listed(*ALL)
            assert api.wait_watchers(3)

            def meanwhile() -> None:
                api.delete("Service", "default", "s1")
                api.apply(service("late"), validate=False)
                api.compact()
                api.faults.add(fault)

            api.restart(while_down=meanwhile)
            sink.wait(lambda: sink.keys(Kind.SERVICE) == expected - {"default/s1"} | {"default/late"})
            assert sink.deletes() == []
            api.delete("Service", "default", "s2")
            sink.wait(lambda: "default/s2" not in sink.keys(Kind.SERVICE))


def test_an_expired_continue_token_starts_the_list_again(make_source: MakeSource) -> None:
    with ApiServer(watch_list=False) as api:
        expected = fill(api, 10)
        api.faults.add(Fault.status(410, resource="services", verb="list", skip=2, times=1))
        with Running(make_source(api, page_size=3)) as sink:
            sink.wait_listed(Kind.SERVICE)
            assert sink.history.count(("replace", Kind.SERVICE, "10")) == 1
            assert sink.keys(Kind.SERVICE) == expected
        asked = api.requests.matching(resource="services", verb="list")
        assert ["continue" in each.query for each in asked] == [False, True, True, False, True, True, True]


def test_a_list_whose_tokens_always_expire_is_read_in_one_piece(make_source: MakeSource) -> None:
    with ApiServer(watch_list=False) as api:
        fill(api, 10)
        api.faults.add(Fault.status(410, resource="services", verb="list", skip=1, times=1))
        api.faults.add(Fault.status(410, resource="services", verb="list", skip=2, times=1))
        with Running(make_source(api, page_size=3)) as sink:
            sink.wait_listed(Kind.SERVICE)
            assert len(sink.keys(Kind.SERVICE)) == 10
        asked = api.requests.matching(resource="services", verb="list")
        assert "limit" not in asked[-1].query


@pytest.mark.parametrize(
    ("streamed", "fault"),
    [
        (False, Fault.status(500, resource="services", verb="list", skip=2, times=3)),
        (False, Fault.close(resource="services", verb="list", skip=1, times=2, after_bytes=200)),
        (False, Fault.truncate(300, resource="services", verb="list", skip=1, times=2)),
        (False, Fault.garbage(resource="services", verb="list", skip=1, times=2)),
        (True, Fault.close(resource="services", verb="watch", times=2, after_bytes=1500)),
        (True, Fault.truncate(1500, resource="services", verb="watch", times=2)),
        (True, Fault.garbage(resource="services", verb="watch", times=2)),
        (True, Fault.watch_error(500, resource="services", times=2)),
        (True, Fault.close(resource="services", verb="watch", times=8, after_bytes=1500)),
    ],
)
def test_a_list_is_handed_over_whole_or_not_at_all(
    make_source: MakeSource, fault: Fault, *, streamed: bool
) -> None:
    with ApiServer(watch_list=streamed) as api:
        expected = fill(api, 10)
        api.faults.add(fault)
        with Running(make_source(api, page_size=3)) as sink:
            sink.wait_listed(Kind.SERVICE)
            services = [each for each in sink.history if each[1] is Kind.SERVICE]
            assert services[0] == ("replace", Kind.SERVICE, "10")
            assert sink.keys(Kind.SERVICE) == expected


def test_an_object_that_does_not_decode_costs_only_itself(make_source: MakeSource) -> None:
    bad = service("bad")
    bad["spec"]["ports"] = "none"
    for streamed in (True, False):
        with ApiServer(watch_list=streamed) as api:
            api.apply(bad, validate=False)
            api.apply(service("good"), validate=False)
            api.apply(service("turns"), validate=False)
            with Running(make_source(api)) as sink:
                sink.wait_listed(Kind.SERVICE)
                assert sink.keys(Kind.SERVICE) == {"default/good", "default/turns"}
                assert sink.unreadable[Kind.SERVICE] == {"default/bad"}
                kind, key, problem = sink.problems[0]
                assert (kind, key, problem.field) == (Kind.SERVICE, "default/bad", "spec.ports")
                assert api.wait_watchers(3)
                turned = service("turns")
                turned["spec"]["ports"] = 5
                api.apply(turned, validate=False)
                sink.wait(lambda: len(sink.problems) == 2)
                assert "default/turns" in sink.keys(Kind.SERVICE)
                api.faults.add(Fault.watch_error(410, resource="services"))
                sink.wait_listed(Kind.SERVICE, times=2)
                assert "default/turns" in sink.keys(Kind.SERVICE)
                api.apply(bad | {"spec": service("bad")["spec"]}, validate=False)
                sink.wait(lambda: "default/bad" in sink.keys(Kind.SERVICE))
                api.delete("Service", "default", "turns")
                sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/good", "default/bad"})


def cidr(name: str, *cidrs: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
    }


def test_service_cidrs_are_watched_once_that_is_asked_for(make_source: MakeSource) -> None:
    with ApiServer() as api:
        source = make_source(api)
        with Running(source) as sink:
            sink.wait_listed(*ALL)
            assert [each.kind for each in source.status()] == list(ALL)
            assert api.requests.matching(resource="servicecidrs") == []
            source.watch([Kind.SERVICE_CIDR])
            sink.wait_listed(Kind.SERVICE_CIDR)
            assert sink.keys(Kind.SERVICE_CIDR) == {"kubernetes"}
            assert source.status()[-1].kind is Kind.SERVICE_CIDR
            api.apply(cidr("more", "10.99.0.0/24"))
            sink.wait(lambda: sink.keys(Kind.SERVICE_CIDR) == {"kubernetes", "more"})


@pytest.mark.parametrize("code", [403, 404])
def test_service_cidrs_that_cannot_be_had_are_done_without(make_source: MakeSource, code: int) -> None:
    with ApiServer() as api:
        refused = api.faults.add(Fault.status(code, resource="servicecidrs", times=3))
        source = make_source(api, unavailable_retry_seconds=0.05)
        source.watch([Kind.SERVICE_CIDR])
        with capture_logs() as logs, Running(source) as sink:
            sink.wait_listed(Kind.SERVICE_CIDR)
            assert sink.keys(Kind.SERVICE_CIDR) == set()
            assert api.faults.wait(refused, hits=3)
            sink.wait(lambda: sink.keys(Kind.SERVICE_CIDR) == {"kubernetes"})
        told = [
            each for each in logs if each.get("kind") == "ServiceCIDR" and each["event"] != "list_complete"
        ]
        assert [(each["event"], "--service-cidr" in each["effect"]) for each in told] == [
            ("kind_unavailable", True)
        ]


def test_a_refusal_keeps_what_was_listed_and_is_no_watch_that_is_down(make_source: MakeSource) -> None:
    with ApiServer() as api:
        source = make_source(api)
        source.watch([Kind.SERVICE_CIDR])
        with Running(source) as sink:
            sink.wait_listed(*ALL, Kind.SERVICE_CIDR)
            refused = api.faults.add(Fault.status(403, resource="servicecidrs", times=None))
            api.drop_watches("servicecidrs")
            assert api.faults.wait(refused)
            wait_for_status(source, lambda _: [each.kind for each in source.status()] == list(ALL))
            assert sink.keys(Kind.SERVICE_CIDR) == {"kubernetes"}
