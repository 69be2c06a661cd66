"""Decoding: what is kept, what is rejected, and that every rejection names object, field and value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.problems import ObjectRejected, show
from kproxy.state.wire import EndpointSlice, Node, Service
from tests import builders
from tests.builders import raw


def test_only_fields_that_matter_make_a_difference() -> None:
    document = builders.service()
    document["metadata"]["annotations"] = {}
    noisy = json.loads(json.dumps(document))
    noisy["metadata"] |= {"resourceVersion": "77", "managedFields": [{"manager": "x"}], "uid": "u"}
    noisy["metadata"]["labels"] = {"app": "web"}
    noisy["metadata"]["annotations"] = {"note": "anything"}
    noisy["spec"] |= {"selector": {"app": "web"}, "ipFamilyPolicy": "SingleStack"}
    assert builders.as_service(noisy) == builders.as_service(document)


def test_values_are_read() -> None:
    decoded = decode(
        Kind.NODE,
        raw(
            {
                "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
                "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "k"}]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            }
        ),
    )
    assert isinstance(decoded, Node)
    assert decoded.key == "n1"
    assert decoded.metadata.labels is not None
    assert decoded.metadata.labels.zone == "z1"
    assert decoded.spec is not None
    assert decoded.spec.pod_cidrs == ("10.1.0.0/24",)
    piece = builders.as_slice(
        builders.endpoint_slice(builders.endpoint("10.0.0.1", zones=["z"], nodes=["n"]))
    )
    assert piece.key == "ns1/svc1-1"
    assert piece.service_key == "ns1/svc1"
    assert piece.endpoints is not None
    assert piece.endpoints[0].hints is not None
    assert piece.endpoints[0].hints.for_nodes is not None
    assert piece.endpoints[0].hints.for_nodes[0].name == "n"


@pytest.mark.parametrize("field", ["spec", "status"])
def test_absent_and_null_are_the_same(field: str) -> None:
    absent, null = builders.service(), builders.service()
    del absent[field]
    null[field] = None
    assert builders.as_service(absent) == builders.as_service(null)


REJECTED: list[tuple[Kind, dict[str, Any], str, str, str]] = [
    (
        Kind.SERVICE,
        builders.service(ports=[{"port": "80"}]),
        "Service ns1/svc1",
        "spec.ports[0].port",
        '"80"',
    ),
    (Kind.SERVICE, builders.service(ports=[{}]), "Service ns1/svc1", "spec.ports[0]", "{}"),
    (
        Kind.SERVICE,
        builders.service(externalIPs="1.2.3.4"),
        "Service ns1/svc1",
        "spec.externalIPs",
        '"1.2.3.4"',
    ),
    (Kind.SERVICE, builders.service(type=7), "Service ns1/svc1", "spec.type", "7"),
    (
        Kind.SERVICE,
        builders.service(ports=[{"port": 80, "nodePort": 2**31}]),
        "Service ns1/svc1",
        "spec.ports[0].nodePort",
        str(2**31),
    ),
    (
        Kind.ENDPOINT_SLICE,
        builders.endpoint_slice({"addresses": [1]}, address_type="IPv4"),
        "EndpointSlice ns1/svc1-1",
        "endpoints[0].addresses[0]",
        "1",
    ),
    (
        Kind.ENDPOINT_SLICE,
        builders.endpoint_slice({"addresses": ["1.1.1.1"], "conditions": {"ready": "yes"}}),
        "EndpointSlice ns1/svc1-1",
        "endpoints[0].conditions.ready",
        '"yes"',
    ),
    (
        Kind.ENDPOINT_SLICE,
        {"metadata": {"name": "a", "namespace": "b", "labels": {"kubernetes.io/service-name": 5}}},
        "EndpointSlice b/a",
        "metadata.labels.kubernetes.io/service-name",
        "5",
    ),
    (Kind.NODE, {"metadata": {"name": "n"}, "spec": 3}, "Node n", "spec", "3"),
]


@pytest.mark.parametrize(("kind", "document", "name", "field", "value"), REJECTED)
def test_a_rejection_names_object_field_and_value(
    kind: Kind, document: dict[str, Any], name: str, field: str, value: str
) -> None:
    with pytest.raises(ObjectRejected) as caught:
        decode(kind, raw(document))
    problem = caught.value.problem
    assert (problem.object, problem.field, problem.value) == (name, field, value)
    assert problem.reason
    assert caught.value.key == name.split()[1]


@pytest.mark.parametrize(
    "name", ["", "UPPER", "a b", "a\nb", "a/b", "-a", "a-", "a" * 254, 'a"', "a\0", "ä", "..", "$a"]
)
def test_names_that_the_api_does_not_allow_are_refused(name: str) -> None:
    for document in (builders.service(name), builders.service(namespace=name)):
        with pytest.raises(ObjectRejected) as caught:
            decode(Kind.SERVICE, raw(document))
        assert caught.value.problem.field in {"metadata.name", "metadata.namespace"}
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{",
        b'{"metadata":null}',
        b'{"metadata":{}}',
        b'{"metadata":{"name":null}}',
        b'{"metadata":{"name":"a","namespace":"b"},"spec":{"type":"\xff"}}',
        b'{"metadata":{"name":"a"},"spec":{"ports":[{"port":1e999}]}}',
        b'{"metadata":{"name":"a"},"spec":{"ports":[{"port":' + b"9" * 5000 + b"}]}}",
        b'{"metadata":{"name":"a"},"spec":{"type":"\\ud800"}}',
        b'{"metadata":{"name":"\\ud800"}}',
    ],
)
def test_what_is_no_object_is_rejected_and_nothing_else_is_raised(text: bytes) -> None:
    with pytest.raises(ObjectRejected):
        decode(Kind.SERVICE, text)


@pytest.mark.parametrize("depth", [*range(10, 1200, 70), *range(900, 1010, 2), 100_000])
def test_deep_nesting_is_rejected(depth: int) -> None:
    """The recursion limits of the decoder and of the message about it lie side by side."""
    for nested in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        with pytest.raises(ObjectRejected):
            decode(Kind.SERVICE, b'{"metadata":{"name":"a"},"spec":{"type":' + nested + b"}}")


@given(st.text(max_size=300) | st.binary(max_size=10) | st.lists(st.text(max_size=5)))
@settings(max_examples=100)
def test_an_untrusted_value_is_shown_on_one_printable_line(value: object) -> None:
    shown = show(value)
    assert shown.isprintable()
    assert shown.isascii()
    assert len(shown) <= 123


def test_keys() -> None:
    assert isinstance(decode(Kind.SERVICE, b'{"metadata":{"name":"a.b-1","namespace":"c"}}'), Service)
    piece = decode(Kind.ENDPOINT_SLICE, b'{"metadata":{"name":"a"}}')
    assert isinstance(piece, EndpointSlice)
    assert (piece.key, piece.service_key) == ("default/a", None)
