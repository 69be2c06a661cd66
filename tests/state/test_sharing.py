"""What slices have in common is kept once, and means what it meant."""

import msgspec

from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.wire import EndpointSlice
from tests.builders import endpoint, endpoint_slice


def decoded(*addresses: str) -> EndpointSlice:
    endpoints = [{**endpoint(ip, node="node-far-away", ready=True), "zone": "zone-a"} for ip in addresses]
    raw = endpoint_slice(*endpoints)
    raw["endpoints"][0]["targetRef"] = {"kind": "Pod", "name": f"pod-{addresses[0]}"}
    found = decode(Kind.ENDPOINT_SLICE, msgspec.json.encode(raw))
    assert isinstance(found, EndpointSlice)
    assert found == msgspec.json.decode(msgspec.json.encode(raw), type=EndpointSlice)
    return found


def test_equal_parts_of_endpoints_are_the_same_object() -> None:
    first, second = decoded("10.1.0.1", "10.1.0.2"), decoded("10.1.0.3")
    assert first.ports is second.ports
    endpoints = [*(first.endpoints or ()), *(second.endpoints or ())]
    assert len({id(each.conditions) for each in endpoints}) == 1
    assert len({id(each.node_name) for each in endpoints}) == 1
    assert len({id(each.zone) for each in endpoints}) == 1


def test_different_conditions_stay_apart() -> None:
    raw = endpoint_slice(
        endpoint("10.1.0.1"), endpoint("10.1.0.2", ready=False, serving=True, terminating=True)
    )
    found = decode(Kind.ENDPOINT_SLICE, msgspec.json.encode(raw))
    assert isinstance(found, EndpointSlice)
    first, second = [each.conditions for each in found.endpoints or ()]
    assert first != second
