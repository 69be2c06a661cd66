"""Requests as clients write them, and bytes that are none."""

import re
from http import HTTPStatus

import pytest

from kproxy.telemetry.http.message import LONGEST_REQUEST, Answer, BadRequest, Request, head, read_request


def parsed(data: bytes) -> Request:
    found = read_request(data)
    assert found is not None
    assert found[1] == len(data)
    return found[0]


@pytest.mark.parametrize(
    ("data", "method", "path"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: node:10256\r\nUser-Agent: kube-probe/1.36\r\n\r\n", "GET", "/livez"),
        (b"GET /healthz HTTP/1.0\r\n\r\n", "GET", "/healthz"),
        (b"GET /healthz HTTP/1.0\n\n", "GET", "/healthz"),
        (b"\r\nHEAD /a?b=c#d HTTP/1.1\r\n\r\n", "HEAD", "/a"),
        (b"GET http://node:10256/healthz?verbose HTTP/1.1\r\n\r\n", "GET", "/healthz"),
        (b"GET http://node:10256 HTTP/1.1\r\n\r\n", "GET", "/"),
        (b"GET /http://node/healthz HTTP/1.1\r\n\r\n", "GET", "/http://node/healthz"),
        (b"GET //healthz HTTP/1.1\r\n\r\n", "GET", "/healthz"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", "OPTIONS", "*"),
        (b"M-SEARCH /\xff HTTP/1.9\r\n\r\n", "M-SEARCH", "/\xff"),
    ],
)
def test_requests_as_clients_write_them(data: bytes, method: str, path: str) -> None:
    request = parsed(data)
    assert (request.method, request.path, request.has_body) == (method, path, False)


@pytest.mark.parametrize(
    ("header", "has_body"),
    [
        (b"Content-Length: 0", False),
        (b"Content-Length: 00", False),
        (b"content-length:\t12", True),
        (b"Transfer-Encoding: chunked", True),
        (b"X-Content-Length: 12", False),
    ],
)
def test_a_body_is_announced_by_its_headers(header: bytes, has_body: bool) -> None:
    assert parsed(b"POST / HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n").has_body is has_body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET /\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"G\0T / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),  # a TLS ClientHello
        (b"\0", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
        (b"GET /" + b"a" * LONGEST_REQUEST, 431),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * LONGEST_REQUEST + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as refused:
        read_request(data)
    assert refused.value.status == status


@pytest.mark.parametrize(
    "data", [b"", b"\r", b"\r\n", b"GET", b"GET / HTTP/1.1\r\nHost: a\r\n", b"G" * 16384]
)
def test_the_rest_of_a_beginning_is_waited_for(data: bytes) -> None:
    assert read_request(data) is None


def test_every_prefix_of_a_request_is_a_beginning() -> None:
    data = b"\r\nOPTIONS /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    assert all(read_request(data[:length]) is None for length in range(len(data)))
    assert parsed(data).method == "OPTIONS"


def test_what_follows_a_request_is_not_part_of_it() -> None:
    found = read_request(b"GET / HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
    assert found is not None
    assert (found[0].path, found[1]) == ("/", 18)


def test_the_head_of_an_answer() -> None:
    answer = Answer(b"{}", "application/json", HTTPStatus.SERVICE_UNAVAILABLE, (("X-Weight", "2"),))
    first, *lines = head(answer).decode().split("\r\n")
    assert first == "HTTP/1.1 503 Service Unavailable"
    assert lines[-2:] == ["", ""]
    headers = dict(line.split(": ") for line in lines[:-2])
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers.pop("Date"))
    assert headers == {
        "Server": "kproxy",
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Weight": "2",
        "Content-Length": "2",
        "Connection": "close",
    }
