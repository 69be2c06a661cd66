"""Which services are only half here: what came of them, what will, and what never waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.state import incomplete_services as module
from kproxy.state.incomplete_services import lacks_slices
from kproxy.state.kinds import Kind
from kproxy.state.tables import Tables
from tests import builders
from tests.builders import Json, as_service, as_slice, port

Step = Callable[[Tables], object]

BOTH = ("10.96.0.1", "fd00::1")
NAMED = [port(80, "web"), port(81, "admin")]


def _service(**fields: object) -> Step:
    obj = as_service(builders.service(**fields))  # type: ignore[arg-type]
    return lambda tables: tables.upsert(obj)


def _slice(*endpoints: str, **fields: object) -> Step:
    given_ = {"ports": [port()], **fields}
    obj = as_slice(builders.endpoint_slice(*endpoints, **given_))  # type: ignore[arg-type]
    return lambda tables: tables.upsert(obj)


def _gone(kind: Kind, name: str) -> Step:
    return lambda tables: tables.delete(kind, f"ns1/{name}")


def _taken(tables: Tables) -> None:
    tables.settle()


def _listed(*objects: Json) -> Tables:
    tables = Tables()
    tables.replace(Kind.SERVICE, [as_service(obj) for obj in objects if "spec" in obj])
    tables.replace(Kind.ENDPOINT_SLICE, [as_slice(obj) for obj in objects if "spec" not in obj])
    return tables


@pytest.mark.parametrize(
    ("steps", "half"),
    [
        pytest.param([_service()], True, id="a service"),
        pytest.param([_slice("10.0.0.1")], True, id="a slice"),
        pytest.param([_service(), _slice("10.0.0.1")], False, id="a service, then its slice"),
        pytest.param([_slice("10.0.0.1"), _service()], False, id="a slice, then its service"),
        pytest.param([_service(), _slice("10.0.0.1", service="other")], True, id="somebody else's slice"),
        pytest.param([_service(), _slice(ports=[])], False, id="a slice without endpoints"),
        pytest.param([_service(ip=BOTH), _slice("10.0.0.1")], True, id="one of two families"),
        pytest.param(
            [_service(ip=BOTH), _slice("10.0.0.1"), _slice("fd00::9", name="svc1-2")],
            False,
            id="both families",
        ),
        pytest.param([_service(ports=NAMED), _slice("10.0.0.1", ports=NAMED[:1])], True, id="a port lacks"),
        pytest.param([_service(ports=[])], False, id="no ports"),
        pytest.param([_service(ip="None")], False, id="headless"),
        pytest.param([_service(type="ExternalName")], False, id="an external name"),
        pytest.param(
            [_service(labels={"service.kubernetes.io/service-proxy-name": "other"})], False, id="not ours"
        ),
        pytest.param([_service(), _taken], False, id="taken as it was"),
        pytest.param([_service(), _taken, _service(externalIPs=["192.0.2.1"])], False, id="only one wait"),
        pytest.param(
            [_slice("10.0.0.1"), _taken, _slice("10.0.0.2")], False, id="only one wait for a service"
        ),
        pytest.param(
            [_service(), _slice("10.0.0.1"), _taken, _gone(Kind.SERVICE, "svc1")], False, id="a service goes"
        ),
        pytest.param(
            [_service(), _slice("10.0.0.1"), _taken, _gone(Kind.SERVICE, "svc1"), _slice("10.0.0.2")],
            False,
            id="its slice changes after it went",
        ),
        pytest.param(
            [_service(), _slice("10.0.0.1"), _taken, _gone(Kind.ENDPOINT_SLICE, "svc1-1")],
            False,
            id="a slice goes",
        ),
        pytest.param([_service(), _gone(Kind.SERVICE, "svc1")], False, id="gone before it was whole"),
        pytest.param(
            [_service(), _slice("10.0.0.1"), _taken, _slice("10.0.0.2")], False, id="an endpoint changes"
        ),
        pytest.param(
            [_service(ports=NAMED[:1]), _slice("10.0.0.1", ports=NAMED[:1]), _taken, _service(ports=NAMED)],
            True,
            id="another port",
        ),
        pytest.param(
            [
                _service(ports=NAMED[:1]),
                _slice("10.0.0.1", ports=NAMED[:1]),
                _taken,
                _service(ports=NAMED),
                _slice("10.0.0.1", ports=NAMED),
            ],
            False,
            id="another port, then its slice",
        ),
        pytest.param(
            [_service(ports=NAMED), _slice("10.0.0.1", ports=NAMED), _taken, _service(ports=NAMED[1:])],
            False,
            id="a port less",
        ),
    ],
)
def test_a_service_is_half_here(steps: list[Step], half: bool) -> None:
    tables = _listed()
    for step in steps:
        step(tables)
    assert tables.has_incomplete is half


def test_nothing_of_the_first_lists_is_half() -> None:
    tables = _listed(builders.service(), builders.endpoint_slice("10.0.0.1", service="other"))
    assert not tables.has_incomplete


STEPS = (
    _service(),
    _service(ports=NAMED),
    _slice("10.0.0.1"),
    _slice("10.0.0.1", ports=NAMED),
    _gone(Kind.SERVICE, "svc1"),
    _gone(Kind.ENDPOINT_SLICE, "svc1-1"),
)


@settings(deadline=None)
@given(st.lists(st.sampled_from(STEPS)))
def test_what_is_whole_or_gone_is_never_half(steps: list[Step]) -> None:
    tables = _listed()
    for step in [*steps, _service(ports=NAMED), _slice("10.0.0.1", ports=NAMED)]:
        step(tables)
    assert not tables.has_incomplete
    for step in [*steps, _gone(Kind.SERVICE, "svc1"), _gone(Kind.ENDPOINT_SLICE, "svc1-1")]:
        step(tables)
    assert not tables.has_incomplete


@pytest.mark.parametrize(("limit", "most"), [("_MOST_SLICES", 2), ("_MOST_PORTS", 4)])
def test_a_service_of_very_many_slices_or_ports_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    service = as_service(builders.service(ip=BOTH, ports=NAMED))
    slices = [
        as_slice(builders.endpoint_slice("10.0.0.1", name=f"svc1-{number}", ports=NAMED))
        for number in range(3)
    ]
    assert lacks_slices(service, slices)
    monkeypatch.setattr(module, limit, most)
    assert lacks_slices(service, slices[:2])
    assert not lacks_slices(service, slices)
