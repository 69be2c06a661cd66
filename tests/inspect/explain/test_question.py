"""The arguments of `kproxy explain` are read as an operator writes them, and refused with what to write."""

import pytest

from kproxy.inspect.explain.question import (
    AddressPort,
    PodName,
    QuestionError,
    ServicePort,
    read_destination,
    read_question,
    read_source,
)
from kproxy.plan.model import Protocol


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node", "node"),
        ("outside", "outside"),
        ("pod/shop/cart-1", PodName("shop", "cart-1")),
        ("010.0.0.1", "10.0.0.1"),
        ("fd00:0::1", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
    ],
)
def test_sources(text: str, expected: object) -> None:
    assert read_source(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop/cart", ServicePort("shop/cart")),
        ("shop/cart:80", ServicePort("shop/cart", "80")),
        ("shop/cart:http", ServicePort("shop/cart", "http")),
        ("10.0.0.1", AddressPort("10.0.0.1")),
        ("10.0.0.1:80", AddressPort("10.0.0.1", 80)),
        ("fd00::1", AddressPort("fd00::1")),
        ("[fd00::1]", AddressPort("fd00::1")),
        ("[fd00::1]:80", AddressPort("fd00::1", 80)),
    ],
)
def test_destinations(text: str, expected: object) -> None:
    assert read_destination(text) == expected


@pytest.mark.parametrize("text", ["", "pod/x", "pod//x", "pod/a/b/c", "host", "10.0.0.1:80", "10.0.0.256"])
def test_other_sources_are_refused_by_name(text: str) -> None:
    with pytest.raises(QuestionError, match=r"^SRC "):
        read_source(text)


@pytest.mark.parametrize(
    "text", ["", "/x", "a/", "a/b/c:1", "cart", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:http"]
)
def test_other_destinations_are_refused_by_name(text: str) -> None:
    with pytest.raises(QuestionError, match=r"^DST "):
        read_destination(text)


@pytest.mark.parametrize("text", ["TCP", "tcp", "Udp", "sctp"])
def test_protocols_are_read_in_any_case(text: str) -> None:
    assert read_question("node", text, "10.0.0.1").protocol is Protocol(text.upper())


def test_other_protocols_are_refused() -> None:
    with pytest.raises(QuestionError, match=r"^PROTO 'icmp'"):
        read_question("node", "icmp", "10.0.0.1")
