"""Lists over HTTP: selectors, pages at one revision, resource versions, expiry."""

from collections.abc import Iterator

import pytest

from kproxy_lab.apiserver import ApiServer
from tests.lab.apiserver_client import ALL_SERVICES, ALL_SLICES, SERVICES, endpoint_slice, get, service


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


def test_lists_are_ordered_and_carry_the_revision(api: ApiServer) -> None:
    api.apply_many([service("b"), service("a"), service("z", namespace="alpha")])
    listed = get(api, ALL_SERVICES).body
    assert [item["metadata"]["name"] for item in listed["items"]] == ["z", "a", "b"]
    assert (listed["kind"], listed["apiVersion"]) == ("ServiceList", "v1")
    assert listed["metadata"] == {"resourceVersion": str(api.revision)}
    assert "kind" not in listed["items"][0]
    assert get(api, SERVICES).names == ["a", "b"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"labelSelector": "app in (web, db),!proxy"}, ["db", "web"]),
        ({"labelSelector": "!app"}, ["plain"]),
        ({"fieldSelector": "spec.clusterIP!=None"}, ["other", "plain", "web"]),
        ({"fieldSelector": "spec.clusterIP=None"}, ["db"]),
        ({"fieldSelector": "metadata.name=web"}, ["web"]),
        ({"fieldSelector": "metadata.namespace=nowhere"}, []),
        ({"fieldSelector": "spec.type=NodePort"}, ["plain"]),
        ({"labelSelector": "!proxy", "fieldSelector": "spec.clusterIP!=None"}, ["plain", "web"]),
    ],
)
def test_selectors(api: ApiServer, query: dict[str, str], names: list[str]) -> None:
    api.apply(service("web", labels={"app": "web"}))
    api.apply(service("db", labels={"app": "db"}, clusterIP="None"))
    api.apply(service("other", labels={"app": "web", "proxy": "x"}))
    api.apply(service("plain", type="NodePort"))
    assert get(api, ALL_SERVICES, **query).names == names


def test_bad_queries_are_refused(api: ApiServer) -> None:
    cases: list[tuple[dict[str, str], int]] = [
        ({"labelSelector": "a in b"}, 400),
        ({"fieldSelector": "spec.nope=1"}, 400),
        ({"resourceVersion": "abc"}, 400),
        ({"continue": "!!"}, 400),
        ({"resourceVersionMatch": "Exact"}, 422),
        ({"resourceVersionMatch": "Exact", "resourceVersion": "0"}, 422),
        ({"resourceVersionMatch": "Sometimes", "resourceVersion": "1"}, 422),
        ({"sendInitialEvents": "true"}, 422),
        ({"resourceVersion": "99999"}, 504),
    ]
    for query, code in cases:
        assert get(api, ALL_SERVICES, **query).code == code, query


def test_a_future_revision_is_recognisable(api: ApiServer) -> None:
    refused = get(api, ALL_SERVICES, resourceVersion=api.revision + 100).body
    assert refused["message"].startswith("Too large resource version")
    assert refused["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert (
        get(api, ALL_SERVICES, resourceVersion=api.revision, resourceVersionMatch="NotOlderThan").code == 200
    )


def test_pages_show_one_revision_whatever_happens_meanwhile(api: ApiServer) -> None:
    api.apply_many(service(f"s{n:02}") for n in range(10))
    first = get(api, ALL_SERVICES, limit=4)
    assert first.body["metadata"]["remainingItemCount"] == 6
    api.delete("Service", "default", "s05")
    api.apply(service("s04a"))
    api.apply(service("s06", labels={"changed": "yes"}))
    names, reply = first.names, first
    while token := reply.body["metadata"].get("continue"):
        reply = get(api, ALL_SERVICES, limit=4, **{"continue": token})
        assert reply.body["metadata"]["resourceVersion"] == first.body["metadata"]["resourceVersion"]
        assert not any("changed" in item["metadata"].get("labels", {}) for item in reply.body["items"])
        names += reply.names
    assert names == [f"s{n:02}" for n in range(10)]


def test_pages_with_a_selector_are_filled(api: ApiServer) -> None:
    api.apply_many(service(f"s{n}", labels={"odd": str(n % 2)}) for n in range(9))
    first = get(api, ALL_SERVICES, limit=3, labelSelector="odd=1")
    assert first.names == ["s1", "s3", "s5"]
    assert "remainingItemCount" not in first.body["metadata"]
    token = first.body["metadata"]["continue"]
    last = get(api, ALL_SERVICES, limit=3, labelSelector="odd=1", **{"continue": token})
    assert (last.names, last.body["metadata"].get("continue")) == (["s7"], None)


def test_an_expired_page_offers_to_go_on_inconsistently(api: ApiServer) -> None:
    api.apply_many(service(f"s{n}") for n in range(4))
    token = get(api, ALL_SERVICES, limit=2).body["metadata"]["continue"]
    api.apply(service("later"))
    api.compact()
    expired = get(api, ALL_SERVICES, limit=2, **{"continue": token})
    assert (expired.code, expired.body["reason"]) == (410, "Expired")
    onward = get(api, ALL_SERVICES, **{"continue": expired.body["metadata"]["continue"]})
    assert onward.names == ["s2", "s3"]


def test_exact_revisions(api: ApiServer) -> None:
    before = api.apply(service("a"))["metadata"]["resourceVersion"]
    api.apply(service("b"))
    api.delete("Service", "default", "a")
    exact = {"resourceVersion": before, "resourceVersionMatch": "Exact"}
    assert get(api, ALL_SERVICES, **exact).names == ["a"]
    assert get(api, ALL_SERVICES, resourceVersion=before, limit=5).names == ["a"]
    assert get(api, ALL_SERVICES, resourceVersion=before).names == ["b"]
    assert get(api, ALL_SERVICES, resourceVersion=0, limit=1).names == ["b"]
    api.compact()
    assert get(api, ALL_SERVICES, **exact).code == 410


def test_history_is_bounded() -> None:
    with ApiServer(history=20) as api:
        first = api.apply(service("a"))["metadata"]["resourceVersion"]
        for _ in range(100):
            api.apply(service("a"))
        assert get(api, ALL_SERVICES, resourceVersion=first, resourceVersionMatch="Exact").code == 410
        recent = api.revision - 10
        assert get(api, ALL_SERVICES, resourceVersion=recent, resourceVersionMatch="Exact").code == 200


def test_ten_thousand_services_in_pages(api: ApiServer) -> None:
    assert api.apply_many(service(f"s{n:05}", selector={"app": f"s{n}"}) for n in range(10_000)) == 10_000
    addresses, token = set(), ""
    while True:
        page = get(api, ALL_SERVICES, limit=500, **{"continue": token}).body
        addresses |= {item["spec"]["clusterIP"] for item in page["items"]}
        if not (token := page["metadata"].get("continue", "")):
            break
    assert len(addresses) == 10_000


def test_slices_are_listed_as_they_were_applied(api: ApiServer) -> None:
    api.apply(endpoint_slice("web-1", "10.244.0.5", "10.244.0.6"))
    listed = get(
        api, ALL_SLICES, labelSelector="kubernetes.io/service-name=web,!service.kubernetes.io/headless"
    )
    (item,) = listed.body["items"]
    assert [endpoint["addresses"] for endpoint in item["endpoints"]] == [["10.244.0.5"], ["10.244.0.6"]]
    assert item["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
