"""Which kinds a source watches after a change of the settings."""

from pathlib import Path

import msgspec
import pytest

from kproxy.agent.source_factory import ObjectSource, make_source
from kproxy.config.model import ProxyConfig
from kproxy.sources.manifests import ManifestSource
from kproxy.state.kinds import KINDS, POLICY_KINDS
from kproxy.telemetry.metrics import Metrics
from kproxy_lab.apiserver import ApiServer

REQUIRED = {kind.name for kind in KINDS if kind.required}
POLICIES = {kind.name for kind in POLICY_KINDS}


def watched(source: ObjectSource) -> set[str]:
    return {each.kind for each in source.watches()}


@pytest.mark.parametrize("first", [True, False])
def test_the_kinds_of_policies_are_watched_while_these_are_enforced(tmp_path: Path, first: bool) -> None:
    on = ProxyConfig(node_name="n", kubeconfig=ApiServer().kubeconfig(tmp_path / "k"), network_policy=True)
    off = msgspec.structs.replace(on, network_policy=False)
    source = make_source(on if first else off, Metrics(), lambda: None)
    assert watched(source) == REQUIRED | (POLICIES if first else set())
    source.follow(off if first else on)
    assert watched(source) == REQUIRED | (set() if first else POLICIES)
    source.follow(on)
    assert watched(source) == REQUIRED | POLICIES


def test_ranges_stay_watched_where_another_mode_does_not_use_them(tmp_path: Path) -> None:
    config = ProxyConfig(
        node_name="n", proxy_mode="nftables", kubeconfig=ApiServer().kubeconfig(tmp_path / "k")
    )
    source = make_source(config, Metrics(), lambda: None)
    source.follow(msgspec.structs.replace(config, proxy_mode="iptables"))
    assert watched(source) == {*REQUIRED, "ServiceCIDR"}


def test_files_are_read_for_policies_while_these_are_enforced(tmp_path: Path) -> None:
    config = ProxyConfig(node_name="n", manifests=tmp_path)
    made = make_source(config, Metrics(), lambda: None)
    assert isinstance(made.source, ManifestSource)
    assert POLICY_KINDS[0] not in made.source.kinds
    made.follow(msgspec.structs.replace(config, network_policy=True))
    assert set(POLICY_KINDS) <= set(made.source.kinds)
