"""Endpoints in compact form are the endpoints that were decoded, and compare like them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.state.compact_endpoints import CompactEndpoints, columns_of, compact
from kproxy.state.wire import Endpoint, EndpointConditions, EndpointHints, HintName, TargetRef

_NAMES = st.none() | st.sampled_from(["a", "b"])
_CONDITIONS = st.none() | st.builds(EndpointConditions, ready=st.none() | st.booleans())
_HINTS = st.none() | st.builds(
    EndpointHints, st.none() | st.lists(st.builds(HintName, st.sampled_from("xyz")), max_size=20).map(tuple)
)
_ENDPOINTS = st.lists(
    st.builds(
        Endpoint,
        st.none() | st.sampled_from(["10.0.0.1", "fd00::1", "rubbish"]).map(lambda each: (each,)),
        _CONDITIONS,
        _NAMES,
        _NAMES,
        _HINTS,
        st.none() | st.builds(TargetRef, _NAMES, _NAMES),
    ),
    max_size=4,
).map(tuple)


@given(_ENDPOINTS, _ENDPOINTS)
def test_nothing_is_lost(endpoints: tuple[Endpoint, ...], others: tuple[Endpoint, ...]) -> None:
    kept = compact(endpoints)
    assert isinstance(kept, CompactEndpoints) is bool(endpoints)
    assert tuple(kept) == endpoints
    assert kept == endpoints
    assert len(kept) == len(endpoints)
    assert [kept[index] for index in range(len(endpoints))] == list(endpoints)
    assert (kept == compact(others)) is (endpoints == others)
    if endpoints == others:
        assert hash(kept) == hash(compact(others))
    assert [(a, c.node_name, p) for a, c, p in columns_of(kept)] == [
        (a, e.node_name, p) for a, e, p in columns_of(endpoints)
    ]


def test_only_the_first_address_counts() -> None:
    """Since Kubernetes 1.32 the API requires consumers to ignore the others."""
    one, two = (Endpoint(("10.0.0.1",)),), (Endpoint(("10.0.0.1", "10.0.0.2")),)
    assert compact(one) == compact(two) == one


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(("10.0.0.1\n10.0.0.2",)),
        Endpoint(("10.0.0.1",), target_ref=TargetRef("Pod", "a\nb")),
    ],
    ids=["address", "pod"],
)
def test_text_with_line_ends_moves_no_endpoint(endpoint: Endpoint) -> None:
    endpoints = (Endpoint(("10.0.0.9",)), endpoint)
    assert compact(endpoints) is endpoints


def test_endpoints_on_one_node_share_all_but_address_and_pod() -> None:
    first, second = (
        compact((Endpoint((ip,), EndpointConditions(ready=True), "n", "z", None, TargetRef("Pod", ip)),))
        for ip in ("10.0.0.1", "10.0.0.2")
    )
    (_, one, _), (_, other, _) = *columns_of(first), *columns_of(second)
    assert one is other
