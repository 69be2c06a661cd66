"""What the server makes of Services: defaults, addresses, ports, refusals."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy_lab.apiserver import ApiError, ApiServer
from tests.lab.apiserver_client import endpoint_slice, service

JSON = dict[str, Any]


@pytest.fixture
def api() -> ApiServer:
    return ApiServer()  # never started: nothing here needs a socket


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({}, {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                          "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                          "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}, id="ClusterIP"),
        pytest.param({"sessionAffinity": "ClientIP"},
                     {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}, id="affinity"),
        pytest.param({"externalIPs": ["192.0.2.1"]}, {"externalTrafficPolicy": "Cluster"}, id="external IPs"),
        pytest.param({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False},
                     {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                      "externalTrafficPolicy": "Cluster"}, id="no node ports"),
        pytest.param({"clusterIP": "None"}, {"clusterIPs": ["None"], "ipFamilyPolicy": "RequireDualStack",
                                             "ipFamilies": ["IPv4", "IPv6"]}, id="headless, no selector"),
        pytest.param({"clusterIP": "None", "selector": {"a": "b"}},
                     {"clusterIPs": ["None"], "ipFamilies": ["IPv4"]}, id="headless"),
        pytest.param({"clusterIP": "fd00:10:96::77"},
                     {"clusterIPs": ["fd00:10:96::77"], "ipFamilies": ["IPv6"]}, id="IPv6 by hand"),
        pytest.param({"type": "NodePort", "ports": [{"name": "t", "port": 53, "nodePort": 31000},
                                                    {"name": "u", "port": 53, "protocol": "UDP"}]},
                     {"ports": [{"name": "t", "port": 53, "nodePort": 31000, "protocol": "TCP",
                                 "targetPort": 53},
                                {"name": "u", "port": 53, "nodePort": 31000, "protocol": "UDP",
                                 "targetPort": 53}]}, id="protocols share a node port"),
    ],
)  # fmt: skip
def test_defaults(api: ApiServer, spec: JSON, expected: JSON) -> None:
    stored = api.apply(service("web", **spec))["spec"]
    assert {field: stored.get(field) for field in expected} == expected


@pytest.mark.parametrize(
    ("spec", "families"),
    [({}, ["IPv4"]), ({"ipFamilies": ["IPv6"]}, ["IPv6"]),
     ({"ipFamilyPolicy": "PreferDualStack"}, ["IPv4", "IPv6"]),
     ({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}, ["IPv6", "IPv4"]),
     ({"ipFamilies": ["IPv6", "IPv4"]}, ["IPv6", "IPv4"])],
)  # fmt: skip
def test_cluster_ips_follow_the_families(api: ApiServer, spec: JSON, families: list[str]) -> None:
    stored = api.apply(service("web", **spec))["spec"]
    assert stored["ipFamilies"] == families
    assert ["IPv6" if ":" in address else "IPv4" for address in stored["clusterIPs"]] == families
    assert stored["clusterIP"] == stored["clusterIPs"][0]
    assert all(address.startswith(("10.96.", "fd00:10:96::")) for address in stored["clusterIPs"])


def test_external_name_services_get_no_address(api: ApiServer) -> None:
    stored = api.apply(service("web", type="ExternalName", externalName="example.com"))["spec"]
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "internalTrafficPolicy"} & stored.keys()


def test_local_load_balancers_get_a_health_check_port(api: ApiServer) -> None:
    stored = api.apply(service("web", type="LoadBalancer", externalTrafficPolicy="Local"))["spec"]
    ports = {stored["healthCheckNodePort"], stored["ports"][0]["nodePort"]}
    assert len(ports) == 2
    assert all(30_000 <= port <= 32_767 for port in ports)


def test_addresses_and_ports_are_unique_and_come_back(api: ApiServer) -> None:
    made = [api.apply(service(f"s{n}", type="NodePort"))["spec"] for n in range(50)]
    assert len({spec["clusterIP"] for spec in made}) == 50
    assert len({spec["ports"][0]["nodePort"] for spec in made}) == 50
    freed = made[0]["ports"][0]["nodePort"]
    assert api.delete("Service", "default", "s0")
    port = [{"port": 80, "nodePort": freed}]
    assert api.apply(service("again", type="NodePort", ports=port))["spec"]["ports"][0]["nodePort"] == freed


def test_applying_a_manifest_again_keeps_what_was_allocated(api: ApiServer) -> None:
    manifest = service("web", type="LoadBalancer", externalTrafficPolicy="Local",
                       ipFamilyPolicy="PreferDualStack")  # fmt: skip
    first, second = api.apply(manifest), api.apply(manifest)
    assert first["spec"] == second["spec"]
    assert first["metadata"]["uid"] == second["metadata"]["uid"]
    assert int(first["metadata"]["resourceVersion"]) < int(second["metadata"]["resourceVersion"])
    assert "uid" not in manifest["metadata"], "the caller's object is left alone"


def test_changes_of_type_release_what_the_new_type_lacks(api: ApiServer) -> None:
    api.apply(service("web", type="LoadBalancer", externalTrafficPolicy="Local"))
    api.edit("Service", "default", "web", lambda obj: obj["spec"].update(type="ClusterIP"))
    stored = api.get("Service", "default", "web")
    assert stored is not None
    assert "nodePort" not in stored["spec"]["ports"][0]
    assert not {"healthCheckNodePort", "externalTrafficPolicy"} & stored["spec"].keys()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ports": []}, "spec.ports"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 65536}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 80, "targetPort": 70000}]}, "spec.ports[0].targetPort"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "spec.ports[0].protocol"),
        ({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}, "spec.ports[1]"),
        ({"ports": [{"port": 80, "nodePort": 80}], "type": "NodePort"}, "spec.ports[0].nodePort"),
        ({"ports": [{"port": 80, "nodePort": 32000}], "type": "NodePort"}, "spec.ports[0].nodePort"),
        ({"type": "Magic"}, "spec.type"),
        ({"clusterIP": "10.96.5.5"}, "spec.clusterIPs[0]"),
        ({"clusterIP": "10.96.0.1\n-j ACCEPT"}, "spec.clusterIPs[0]"),
        ({"externalIPs": ["300.1.1.1"]}, "spec.externalIPs[0]"),
        ({"loadBalancerSourceRanges": ["10.0.0.0"]}, "spec.loadBalancerSourceRanges[0]"),
        ({"sessionAffinity": "Sticky"}, "spec.sessionAffinity"),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
         "spec.sessionAffinityConfig.clientIP.timeoutSeconds"),
        ({"internalTrafficPolicy": "Nearby"}, "spec.internalTrafficPolicy"),
        ({"ipFamilies": ["IPv5"]}, "spec.ipFamilies"),
        ({"type": "ExternalName"}, "spec.externalName"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(api: ApiServer, change: JSON, field: str) -> None:
    taken = [{"port": 80, "nodePort": 32000}]
    api.apply(service("other", type="NodePort", clusterIP="10.96.5.5", ports=taken))
    with pytest.raises(ApiError) as caught:
        api.apply(service("web", **change))
    assert caught.value.code == 422
    assert field in [cause["field"] for cause in caught.value.status()["details"]["causes"]]
    assert api.get("Service", "default", "web") is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"addressType": "IPv9"}, "addressType"),
        ({"endpoints": [{"addresses": []}]}, "endpoints[0].addresses"),
        ({"endpoints": [{"addresses": ["fd00::1"]}]}, "endpoints[0].addresses"),
        ({"endpoints": [{"addresses": ["10.0.0.01"]}]}, "endpoints[0].addresses"),
        ({"ports": [{"port": 99999}]}, "ports[0].port"),
        ({"ports": [{"port": 1}, {"port": 2}]}, "ports[1].name"),
        ({"metadata": {"name": "Not_a_name"}}, "metadata.name"),
    ],
)
def test_refused_slices(api: ApiServer, change: JSON, field: str) -> None:
    with pytest.raises(ApiError) as caught:
        api.apply({**endpoint_slice("web-1", "10.0.0.1"), **change})
    assert field in [cause["field"] for cause in caught.value.status()["details"]["causes"]]


@pytest.mark.parametrize(
    "garbage",
    [
        {"spec": "text"},
        {"spec": {"ports": "80", "clusterIP": ["x"]}},
        {"spec": {"clusterIP": "10.96.0.1\n-A INPUT", "ports": [None, 5, {"port": -1}]}},
        {"metadata": {"name": "web", "namespace": "default", "labels": 7}},
        {"metadata": {"name": "web", "namespace": "default", "resourceVersion": {"odd": True}}},
        {"status": None, "spec": None},
    ],
)
def test_unvalidated_garbage_goes_through_untouched(api: ApiServer, garbage: JSON) -> None:
    sent = {**service("web"), **garbage}
    stored = api.apply(sent, validate=False)
    if not isinstance(sent["metadata"].get("resourceVersion"), dict):
        assert stored["metadata"].pop("resourceVersion").isdecimal()
    assert stored == sent


def test_garbage_without_kind_or_metadata_can_be_stored_as_a_kind(api: ApiServer) -> None:
    assert api.apply({"hello": 1}, validate=False, kind="Service") == {"hello": 1}
    assert api.get("Service", "default", "unnamed") == {"hello": 1}


def test_generation_counts_changes_of_slices(api: ApiServer) -> None:
    def generation(*addresses: str) -> int:
        stored = api.apply(endpoint_slice("web-1", *addresses))
        return int(stored["metadata"]["generation"])

    assert [generation("10.0.0.1"), generation("10.0.0.1"), generation("10.0.0.2")] == [1, 1, 2]


ODD = st.sampled_from(
    [None, 0, -1, 80, 10**9, 1.5, True, "", "x", "a\nb", "None", [], {}, [None], ["x"], {"a": None}]
)
FULL = service(
    "web", type="LoadBalancer", sessionAffinity="ClientIP", externalTrafficPolicy="Local",
    sessionAffinityConfig={"clientIP": {"timeoutSeconds": 5}}, externalIPs=["192.0.2.1"],
    loadBalancerSourceRanges=["10.0.0.0/8"], clusterIP="10.96.1.1", clusterIPs=["10.96.1.1"],
    ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack", healthCheckNodePort=30123,
    ports=[{"name": "a", "port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": 8080}],
)  # fmt: skip


def paths(value: object, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    pairs = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [(*prefix, key) for key, _ in pairs] + [
        path for key, one in pairs for path in paths(one, (*prefix, key))
    ]


def mutate(obj: object, path: tuple[str | int, ...], value: object) -> None:
    for step in path[:-1]:
        if isinstance(obj, dict):
            obj = obj.get(step)
        elif isinstance(obj, list) and isinstance(step, int) and step < len(obj):
            obj = obj[step]
    if isinstance(obj, dict):
        obj[path[-1]] = copy.deepcopy(value)


@pytest.mark.parametrize("replaces", [False, True], ids=["create", "replace"])
@pytest.mark.parametrize(
    "base", [FULL, endpoint_slice("web-1", "10.0.0.1")], ids=["Service", "EndpointSlice"]
)
@settings(deadline=None)
@given(data=st.data())
def test_any_mutation_is_stored_or_refused_with_a_reason(
    base: JSON, replaces: bool, data: st.DataObject
) -> None:
    api = ApiServer(seed=False)
    if replaces:
        api.apply(base)
    obj = copy.deepcopy(base)
    for path in data.draw(st.lists(st.sampled_from(paths(base)), min_size=1, max_size=3, unique=True)):
        mutate(obj, path, data.draw(ODD))
    try:
        stored = api.apply(obj, kind=base["kind"])
    except ApiError as refused:
        outcome = refused.status()
    else:
        outcome = {"code": 200, "message": stored["metadata"]["name"]}
    assert outcome["code"] in (200, 400, 422)
    assert outcome["message"]
