"""The estimated cost of a service: cheap ones first, linear in each list, bounded by the limits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kproxy.plan.cost import cost_of
from kproxy.plan.limits import DEFAULT_LIMITS
from kproxy.state.tables import ServiceInput
from tests.builders import endpoint_slice, given, port, service


def _given(
    *, ports: int = 1, external: int = 0, ranges: int = 0, endpoints: int = 0, **fields: Any
) -> ServiceInput:
    numbers = [port(1 + n, f"p{n}") for n in range(ports)]
    built = service(
        ports=numbers,
        externalIPs=[f"1.2.{n >> 8}.{n & 255}" for n in range(external)],
        loadBalancerSourceRanges=[f"10.{n >> 8}.{n & 255}.0/24" for n in range(ranges)],
        ingress=["9.9.9.9"] if ranges else [],
        **fields,
    )
    addresses = [f"10.1.{n >> 8}.{n & 255}" for n in range(endpoints)]
    return given(built, *([endpoint_slice(*addresses, ports=numbers)] if addresses else []))


@pytest.mark.parametrize("size", ["ports", "external", "ranges", "endpoints"])
def test_twice_as_long_a_list_costs_twice_as_much(size: str) -> None:
    base = cost_of(_given())
    once, twice = (cost_of(_given(**{size: n})) - base for n in (200, 400))
    assert once > 100
    assert twice == pytest.approx(2 * once, rel=0.1)


def test_products_of_two_lists_count_up_to_the_limits() -> None:
    small = msgspec.structs.replace(DEFAULT_LIMITS, endpoints_per_service=500, frontends_per_service=500)
    for fields in ({"ports": 20, "endpoints": 100}, {"ports": 20, "external": 100}):
        full, bounded = cost_of(_given(**fields)), cost_of(_given(**fields), small)
        assert full > 2000 > 1000 > bounded > 500


def test_an_endpoint_with_affinity_costs_many_times_as_much() -> None:
    """It is written as rules, together with all others of its port."""
    plain, sticky = (cost_of(_given(endpoints=100, sessionAffinity=kind)) for kind in ("None", "ClientIP"))
    assert sticky > 5 * plain


def test_a_service_that_is_gone_costs_nearly_nothing() -> None:
    assert cost_of(ServiceInput("ns1/gone", 1, None, ())) == 1
    assert cost_of(_given()) < 10


def test_an_annotation_costs_by_its_length_and_by_the_endpoints_compared() -> None:
    text = '{"*": 10}' * 100
    annotated = _given(endpoints=100, annotations={"kproxy.io/weights": text})
    assert cost_of(annotated) > cost_of(_given(endpoints=100)) + 100 * 4
