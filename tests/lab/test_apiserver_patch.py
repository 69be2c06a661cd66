from typing import Any

import pytest

from kproxy_lab.apiserver import ApiError
from kproxy_lab.apiserver.patch import json_patch, merge_patch
from kproxy_lab.apiserver.strategic import server_side_apply, strategic_merge

JSON = dict[str, Any]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/a/c", "value": 1}, {"a": {"b": 1, "c": 1}, "l": [1, 2]}),
        ({"op": "add", "path": "/l/-", "value": 3}, {"a": {"b": 1}, "l": [1, 2, 3]}),
        ({"op": "add", "path": "/l/0", "value": 0}, {"a": {"b": 1}, "l": [0, 1, 2]}),
        ({"op": "replace", "path": "/l/1", "value": 9}, {"a": {"b": 1}, "l": [1, 9]}),
        ({"op": "replace", "path": "/a", "value": None}, {"a": None, "l": [1, 2]}),
        ({"op": "remove", "path": "/l/0"}, {"a": {"b": 1}, "l": [2]}),
        ({"op": "remove", "path": "/a/b"}, {"a": {}, "l": [1, 2]}),
        ({"op": "move", "from": "/a/b", "path": "/x~1y"}, {"a": {}, "l": [1, 2], "x/y": 1}),
        ({"op": "copy", "from": "/a", "path": "/z"}, {"a": {"b": 1}, "l": [1, 2], "z": {"b": 1}}),
        ({"op": "test", "path": "/a/b", "value": 1}, {"a": {"b": 1}, "l": [1, 2]}),
    ],
)
def test_json_patch(operation: JSON, expected: JSON) -> None:
    original = {"a": {"b": 1}, "l": [1, 2]}
    assert json_patch(original, [operation]) == expected
    assert original == {"a": {"b": 1}, "l": [1, 2]}


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "test", "path": "/a", "value": 2}], 422),
        ([{"op": "remove", "path": "/nope"}], 422),
        ([{"op": "replace", "path": "/l/7", "value": 1}], 422),
        ([{"op": "add", "path": "/l/01", "value": 1}], 422),
        ([{"op": "add", "path": "/a/b/c", "value": 1}], 422),
        ([{"op": "frob", "path": "/a"}], 400),
        ([{"op": "add", "path": "/a"}], 400),
        ([{"op": "add", "path": "a", "value": 1}], 400),
        ([{"op": "move", "path": "/a"}], 400),
        ({"op": "add"}, 400),
        (["x"], 400),
    ],
)
def test_json_patches_that_do_not_fit(operations: object, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        json_patch({"a": 1, "l": []}, operations)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"c": None, "d": 1}}, {"a": 1, "b": {"d": 1}}),
        ({"l": [1, 2]}, {"l": [3]}, {"l": [3]}),
        ({"a": "x"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({}, {"a": {"b": None}}, {"a": {}}),
    ],
)
def test_merge_patch(target: JSON, patch: JSON, expected: JSON) -> None:
    assert merge_patch(target, patch) == expected


HTTP = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}
DNS = {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53}


@pytest.mark.parametrize(
    ("patch", "ports"),
    [
        pytest.param([{"port": 80, "targetPort": 1}], [{**HTTP, "targetPort": 1}, DNS], id="merged by key"),
        pytest.param([{"port": 53, "protocol": "TCP"}], [HTTP, DNS, {"port": 53, "protocol": "TCP"}],
                     id="other protocol is another port"),
        pytest.param([{"$patch": "delete", "port": 80}], [DNS], id="delete"),
        pytest.param([{"$patch": "replace"}, {"port": 1}], [{"port": 1}], id="replace"),
        pytest.param([{"port": 443}], [HTTP, DNS, {"port": 443}], id="added"),
        pytest.param([{"port": 53, "name": None}], [HTTP, {k: v for k, v in DNS.items() if k != "name"}],
                     id="null removes"),
    ],
)  # fmt: skip
def test_strategic_merge_of_service_ports(patch: list[JSON], ports: list[JSON]) -> None:
    merged = strategic_merge("Service", {"spec": {"ports": [HTTP, DNS]}}, {"spec": {"ports": patch}})
    assert merged["spec"]["ports"] == ports


def test_kubectl_apply_changes_the_protocol_of_a_port() -> None:
    patch = {
        "$setElementOrder/ports": [{"port": 53}, {"port": 80}],
        "ports": [{"port": 53, "protocol": "TCP"}],
    }
    merged = strategic_merge("Service", {"spec": {"ports": [HTTP, DNS]}}, {"spec": patch})
    assert merged["spec"]["ports"] == [{**DNS, "protocol": "TCP"}, HTTP]


@pytest.mark.parametrize(
    ("kind", "target", "patch", "expected"),
    [
        pytest.param("Service", {"spec": {"externalIPs": ["a", "b"]}}, {"spec": {"externalIPs": ["c"]}},
                     {"spec": {"externalIPs": ["c"]}}, id="primitive lists are replaced"),
        pytest.param("Service", {"spec": {"selector": {"a": "1", "b": "2"}}},
                     {"spec": {"selector": {"$patch": "replace", "c": "3"}}},
                     {"spec": {"selector": {"c": "3"}}}, id="map replaced"),
        pytest.param("Service", {"spec": {"selector": {"a": "1"}}},
                     {"spec": {"selector": {"$patch": "delete"}}}, {"spec": {}}, id="map deleted"),
        pytest.param("Service", {"metadata": {"finalizers": ["x"]}}, {"metadata": {"finalizers": ["y"]}},
                     {"metadata": {"finalizers": ["x", "y"]}}, id="finalizers are merged"),
        pytest.param("Service", {"metadata": {"finalizers": ["x", "y"]}},
                     {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}},
                     {"metadata": {"finalizers": ["y"]}}, id="deleted from a primitive list"),
        pytest.param("Node", {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "r"}]}},
                     {"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Disk"}]}},
                     {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "r"},
                                                {"type": "Disk"}]}}, id="conditions by type"),
        pytest.param("EndpointSlice", {"endpoints": [{"addresses": ["1"]}]}, {"endpoints": []},
                     {"endpoints": []}, id="slices' lists are atomic"),
        pytest.param("Service", {"spec": {"a": 1, "b": 2}}, {"spec": {"$retainKeys": ["b"], "b": 3}},
                     {"spec": {"b": 3}}, id="retained keys"),
    ],
)  # fmt: skip
def test_strategic_merge(kind: str, target: JSON, patch: JSON, expected: JSON) -> None:
    assert strategic_merge(kind, target, patch) == expected


def test_a_keyed_list_element_without_its_key_is_refused() -> None:
    with pytest.raises(ApiError, match="merge key 'port'"):
        strategic_merge("Service", {}, {"spec": {"ports": [{"name": "x"}]}})


def test_server_side_apply_makes_keyed_lists_what_was_applied() -> None:
    target = {"spec": {"ports": [HTTP, DNS], "selector": {"a": "1"}}}
    applied = {"spec": {"ports": [{"port": 80, "targetPort": 9}], "selector": {"b": "2"}}}
    assert server_side_apply("Service", target, applied) == {
        "spec": {"ports": [{**HTTP, "targetPort": 9}], "selector": {"a": "1", "b": "2"}}
    }
