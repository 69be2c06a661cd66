"""Which kinds a configuration needs."""

import pytest

from kproxy.config.model import ProxyConfig
from kproxy.modes.kinds import needed_kinds, wanted_kinds
from kproxy.state.kinds import KINDS, POLICY_KINDS, Kind


@pytest.mark.parametrize(
    ("mode", "cidrs", "wanted"),
    [
        ("iptables", (), set()),
        ("ipvs", (), set()),
        ("nftables", (), {Kind.SERVICE_CIDR}),
        ("nftables", ("10.96.0.0/16",), set()),
    ],
)
def test_service_cidrs_are_wanted_where_nftables_mode_has_no_ranges(
    mode: str, cidrs: tuple[str, ...], wanted: set[Kind]
) -> None:
    config = ProxyConfig(node_name="n", proxy_mode=mode, service_cidrs=cidrs)
    assert wanted_kinds(config) == wanted
    assert set(needed_kinds(config)) == {Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE} | wanted


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables"])
def test_the_kinds_of_network_policies_are_wanted_only_where_they_are_enforced(mode: str) -> None:
    config = ProxyConfig(node_name="n", proxy_mode=mode)
    assert wanted_kinds(config).isdisjoint(POLICY_KINDS)
    enforcing = ProxyConfig(node_name="n", proxy_mode=mode, network_policy=True)
    assert wanted_kinds(enforcing) - wanted_kinds(config) == set(POLICY_KINDS)
    assert not any(kind.required for kind in POLICY_KINDS)


def test_every_kind_has_a_name_a_path_and_a_struct_of_its_own() -> None:
    for values in zip(*((str(kind), kind.path, kind.wire) for kind in KINDS), strict=True):
        assert len(set(values)) == len(KINDS)
    assert [kind.path for kind in KINDS] == [
        "/api/v1/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/api/v1/nodes",
        "/apis/networking.k8s.io/v1/servicecidrs",
        "/api/v1/pods",
        "/api/v1/namespaces",
        "/apis/networking.k8s.io/v1/networkpolicies",
    ]


def test_of_nodes_only_this_one_is_wanted() -> None:
    assert [kind for kind in KINDS if not kind.wants("b", "a")] == [Kind.NODE]
    assert all(kind.wants("a", "a") for kind in KINDS)
