"""Faults on demand, authentication, TLS, and the record of requests."""

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
import yaml

from kproxy_lab.apiserver import ApiServer, Fault
from tests.lab.apiserver_client import (
    ALL_SERVICES,
    ALL_SLICES,
    CUT,
    call,
    connection,
    get,
    issue,
    service,
    watch,
)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        api.apply(service("web"))
        yield api


@pytest.mark.parametrize("code", [401, 410, 429, 500, 503])
def test_status(api: ApiServer, code: int) -> None:
    api.faults.add(Fault.status(code, resource="services", verb="list", times=2, retry_after=3))
    assert get(api, ALL_SLICES).code == 200
    for _ in range(2):
        reply = get(api, ALL_SERVICES)
        assert (reply.code, reply.body["code"], reply.headers["Retry-After"]) == (code, code, "3")
    assert get(api, ALL_SERVICES).code == 200


def test_some_requests_can_pass_first(api: ApiServer) -> None:
    armed = api.faults.add(Fault.status(500, skip=2))
    assert [get(api, ALL_SERVICES).code for _ in range(4)] == [200, 200, 500, 200]
    assert (armed.hits, api.faults.wait(armed, timeout=0)) == (1, True)


def test_until_removed(api: ApiServer) -> None:
    with api.faults.during(Fault.status(503, times=None)) as armed:
        assert [get(api, ALL_SERVICES).code for _ in range(3)] == [503] * 3
    assert armed.hits == 3
    assert get(api, ALL_SERVICES).code == 200


def test_close_before_the_answer_and_in_the_middle(api: ApiServer) -> None:
    api.faults.add(Fault.close(verb="list"))
    with pytest.raises(CUT):
        get(api, ALL_SERVICES)
    assert api.requests.matching(resource="services", verb="list", status=0)
    api.faults.add(Fault.close(verb="list", after_bytes=10))
    with pytest.raises(CUT):
        get(api, ALL_SERVICES)
    assert get(api, ALL_SERVICES).names == ["web"]


def test_truncated_json_in_intact_http(api: ApiServer) -> None:
    api.faults.add(Fault.truncate(30, verb="list"))
    with pytest.raises(json.JSONDecodeError):
        get(api, ALL_SERVICES)


def test_garbage(api: ApiServer) -> None:
    api.faults.add(Fault.garbage(verb="get"))
    with pytest.raises(json.JSONDecodeError):
        get(api, "/api/v1/namespaces/default/services/web")


def test_slow_answers_arrive_whole(api: ApiServer) -> None:
    armed = api.faults.add(Fault.slow(50, 0.001, verb="list"))
    assert get(api, ALL_SERVICES).names == ["web"]
    assert armed.hits == 1


def test_a_stalled_answer_goes_on_when_the_fault_is_removed(api: ApiServer) -> None:
    armed = api.faults.add(Fault.stall(verb="list", after_bytes=20))
    link = connection(api)
    link.request("GET", ALL_SERVICES)
    response = link.getresponse()
    first = response.read(20)
    assert link.sock is not None
    link.sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        response.read(1)
    api.faults.remove(armed)
    link.close()
    assert first.startswith(b'{"kind":"ServiceList')
    with api.faults.during(Fault.stall(verb="list")) as armed:
        link = connection(api)
        link.request("GET", ALL_SERVICES)
        assert api.faults.wait(armed)
    assert json.loads(link.getresponse().read())["kind"] == "ServiceList"
    link.close()


def test_a_running_watch_is_struck_at_once(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        assert api.wait_watchers(1)
        api.faults.add(Fault.garbage(resource="services", verb="watch"))
        assert not stream.line().startswith(b"{")
        api.apply(service("next"))
        assert stream.events(1) == [("ADDED", "next")]
        api.faults.add(Fault.close(resource="services", verb="watch"))
        with pytest.raises(CUT):
            stream.event()
    assert api.wait_watchers(0)


def test_an_error_event_ends_a_watch(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        api.faults.add(Fault.watch_error(410, resource="services"))
        kind, status = stream.event()
        assert (kind, status["code"], status["reason"], stream.line()) == ("ERROR", 410, "Expired", b"")


def test_a_watch_line_cut_in_the_middle(api: ApiServer) -> None:
    api.faults.add(Fault.truncate(40, verb="watch"))
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        api.apply(service("next"))
        line = stream.line()
        assert len(line) == 40
        assert stream.line() == b""


def test_a_stalled_watch_loses_nothing_once_released(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        assert api.wait_watchers(1)
        with api.faults.during(Fault.stall(verb="watch")) as armed:
            assert api.faults.wait(armed)
            api.apply(service("held"))
        assert stream.events(1) == [("ADDED", "held")]


def test_refused_connections(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES, resourceVersion=api.revision) as stream:
        with api.faults.during(Fault.refuse()):
            with pytest.raises(CUT):
                stream.event()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", api.port), timeout=5)
        assert get(api, ALL_SERVICES).names == ["web"]


def test_dropped_watches_can_be_had_again(api: ApiServer) -> None:
    with watch(api, ALL_SERVICES) as services, watch(api, ALL_SLICES, resourceVersion=api.revision) as _:
        assert services.events(1) == [("ADDED", "web")]
        assert api.wait_watchers(2)
        api.drop_watches("services")
        with pytest.raises(CUT):
            services.event()
        assert api.wait_watchers(1)
        assert (api.watchers("services"), api.watchers("endpointslices")) == (0, 1)


def test_tokens_come_and_go(tmp_path: Path) -> None:
    with ApiServer(tokens={"one", "two"}) as api:

        def code(token: str) -> int:
            return call(api, "GET", ALL_SERVICES, headers={"Authorization": f"Bearer {token}"}).code

        assert (code("one"), code("two"), code("three"), get(api, ALL_SERVICES).code) == (200, 200, 401, 401)
        api.expire_tokens("one")
        assert (code("one"), code("two")) == (401, 200)
        assert api.tokens is not None
        api.tokens.add("three")
        assert code("three") == 200
        config = yaml.safe_load(api.kubeconfig(tmp_path / "config").read_text())
        assert config["users"][0]["user"]["token"] in api.tokens
        assert (tmp_path / "config").stat().st_mode & 0o077 == 0
        api.expire_tokens()
        assert (code("two"), code("three")) == (401, 401)
        assert api.requests.matching(status=401)[0].headers.get("Authorization") is None


def test_tls_with_client_certificates(tmp_path: Path) -> None:
    tls = issue(tmp_path)
    with ApiServer(tls=tls, tokens={"t"}) as api:
        config = yaml.safe_load(api.kubeconfig(tmp_path / "config").read_text())
        user = config["users"][0]["user"]
        assert config["clusters"][0]["cluster"] == {"server": api.url, "certificate-authority": str(tls.ca)}
        context = ssl.create_default_context(cafile=tls.ca)
        with urllib3.PoolManager(ssl_context=context, retries=False) as pool:
            assert pool.request("GET", f"{api.url}{ALL_SERVICES}").status == 401
        context = ssl.create_default_context(cafile=tls.ca)
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        with urllib3.PoolManager(ssl_context=context, retries=False) as pool:
            assert pool.request("GET", f"{api.url}{ALL_SERVICES}").status == 200
            api.restart()
            assert pool.request("GET", f"{api.url}{ALL_SERVICES}").status == 200


def test_requests_are_recorded(api: ApiServer) -> None:
    call(api, "GET", ALL_SERVICES, headers={"User-Agent": "kproxy/test"}, limit=500)
    (record,) = api.requests.matching(resource="services", verb="list")
    assert (record.method, record.path, record.user_agent, record.status) == (
        "GET",
        ALL_SERVICES,
        "kproxy/test",
        200,
    )
    assert record.query == {"limit": "500"}
    with watch(api, ALL_SERVICES, resourceVersion="0"):
        assert api.requests.wait(verb="watch", where=lambda one: one.query["resourceVersion"] == "0")
    api.requests.clear()
    assert api.requests.all() == []


def test_health_needs_no_token() -> None:
    with ApiServer(tokens={"t"}) as api:
        link = connection(api)
        for path in ("/healthz", "/livez", "/readyz"):
            link.request("GET", path)
            response = link.getresponse()
            assert (response.status, response.read()) == (200, b"ok")
        link.close()


def test_ipv6_listeners() -> None:
    with ApiServer(host="::1") as api:
        assert api.url == f"http://[::1]:{api.port}"
        assert get(api, ALL_SERVICES).code == 200


def test_a_taken_port_is_reported(api: ApiServer) -> None:
    with pytest.raises(OSError, match="in use"):
        ApiServer(port=api.port).start()
