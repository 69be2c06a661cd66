"""What an API server's error says, and whether its versions go back."""

import threading
from pathlib import Path

import pytest

from kproxy.sources.cluster import ClusterAccess
from kproxy.sources.errors import ExpiredError, GatewayError, Status, StatusError
from kproxy.sources.expired_410_gone import VersionOrder
from kproxy.sources.list_once import list_once
from kproxy.sources.transport import Transport, TransportConfig, _retry_after
from kproxy.state.kinds import Kind
from kproxy_lab.apiserver import ApiServer, Fault
from tests.sources.objects import node, service
from tests.sources.scripted import Answering, ScriptedServer


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (Status(), "no reason given"),
        (Status(reason="Expired"), "Expired"),
        (Status(message="too old"), "too old"),
        (Status(reason="Expired", message="too old"), "Expired: too old"),
        (Status(message='a "quoted"\nline'), 'a \\"quoted\\"\\nline'),
    ],
)
def test_a_status_is_one_line(status: Status, text: str) -> None:
    assert status.text == text


def test_the_code_of_a_status_is_its_own_or_that_of_the_answer() -> None:
    assert str(Status(message="gone").error(410, 3.0)) == "410 gone"
    error = Status(code=429, message="slow down").error(200, 3.0)
    assert (error.code, str(error), error.retry_after) == (429, "429 slow down", 3.0)


def failure(code: int, body: object, **headers: str) -> StatusError:
    """The error of a request that is answered so."""

    def script(ask: Answering) -> None:
        ask.reply(body, code, headers)

    with ScriptedServer(script) as server:
        transport = Transport(ClusterAccess(master=server.url), TransportConfig(retry_after_max_seconds=60.0))
        with pytest.raises(StatusError) as error:
            transport.open("/api/v1/services", {}, 20.0)
        transport.close()
        assert len(server.requests) == 1
    return error.value


def test_an_answer_without_a_status_is_named_by_its_reason() -> None:
    error = failure(500, b"<html>")
    assert str(error) == "500 Internal Server Error"
    assert not isinstance(error, GatewayError)
    assert error.retry_after is None
    assert isinstance(failure(503, b"", **{"retry-after": "7"}), GatewayError)
    own = failure(503, {"kind": "Status", "code": 503, "reason": "ServiceUnavailable", "message": "etcd"})
    assert str(own) == "503 ServiceUnavailable: etcd"
    assert not isinstance(own, GatewayError)


def test_retry_after_of_an_answer_is_kept() -> None:
    assert failure(429, {"code": 429}, **{"retry-after": "7"}).retry_after == 7.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        ("-1", 0.0),
        ("1000", 60.0),
        ("nan", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 60.0),
    ],
)
def test_retry_after_is_a_number_or_a_date_and_bounded(text: str | None, seconds: float | None) -> None:
    assert _retry_after(text, 60.0) == seconds


def test_a_server_that_goes_back_twice_has_versions_without_an_order() -> None:
    order = VersionOrder()
    assert order.see("5", None)
    assert order.see("6", "5")
    with pytest.raises(ExpiredError, match="back from 6 to 4"):
        order.see("4", "6")
    assert not order.see("3", "4")
    assert order.see("2", "9")
    assert not order.is_behind("2", "9")


def test_a_server_that_was_restored_once_is_compared_again() -> None:
    order = VersionOrder()
    for _ in range(3):
        with pytest.raises(ExpiredError):
            order.see("4", "6")
        assert order.see("5", "4")
    assert order.is_behind("4", "5")


@pytest.mark.parametrize(("version", "known"), [("4", ""), ("4", None), ("a", "6"), ("4", "b"), ("6", "6")])
def test_versions_that_are_no_numbers_are_not_compared(version: str, known: str | None) -> None:
    assert not VersionOrder().is_behind(version, known)


def test_numbers_of_other_lengths_are_compared_as_numbers() -> None:
    assert VersionOrder().is_behind("9", "10")
    assert not VersionOrder().is_behind("10", "9")


@pytest.mark.parametrize("code", [403, 404])
def test_an_optional_kind_that_a_server_refuses_is_left_out_of_a_single_list(
    tmp_path: Path, code: int
) -> None:
    with ApiServer() as api:
        api.apply(service("a"), validate=False)
        api.apply(node("n1"), validate=False)
        access = ClusterAccess(kubeconfig=api.kubeconfig(tmp_path / "kubeconfig"))
        optional = [kind for kind in (Kind.NODE, Kind.SERVICE_CIDR) if not kind.required]
        for kind in optional:
            api.faults.add(Fault.status(code, resource=kind.plural, times=None))
        found = list_once(access, "n1")
        assert [each.key for each in found.objects[Kind.SERVICE]] == ["default/a"]
        assert optional
        assert all(found.objects[kind] == () for kind in optional)
        api.faults.add(Fault.status(code, resource="services", times=None))
        with pytest.raises(StatusError):
            list_once(access, "n1")


def test_an_optional_kind_that_a_server_fails_to_list_ends_a_single_list(tmp_path: Path) -> None:
    with ApiServer() as api:
        access = ClusterAccess(kubeconfig=api.kubeconfig(tmp_path / "kubeconfig"))
        api.faults.add(Fault.status(500, resource=Kind.SERVICE_CIDR.plural, times=None))
        with pytest.raises(StatusError, match="500"):
            list_once(access, "n1")


def test_a_closed_transport_takes_no_request() -> None:
    def script(ask: Answering) -> None:
        ask.hold()

    with ScriptedServer(script) as server:
        transport = Transport(ClusterAccess(master=server.url))
        failed: list[str] = []

        def ask() -> None:
            try:
                transport.open("/api/v1/services", {}, 1e5)
            except Exception as error:  # noqa: BLE001 - compared below
                failed.append(type(error).__name__)

        thread = threading.Thread(target=ask)
        thread.start()
        while not server.requests and thread.is_alive():
            thread.join(0.01)
        transport.close()
        thread.join(20)
        assert not thread.is_alive()
        assert failed[0] in {"DisconnectedError", "UnreachableError"}
        ask()
        assert failed[1] == "DisconnectedError"
