"""The changes of the next sync: what is planned with, what is told, and the parameters that go with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kproxy.addresses import Family
from kproxy.backends.core.change import Change, Sign
from kproxy.config.model import ConfigError, ProxyConfig
from kproxy.inspect import diff as module
from kproxy.inspect.diff import Difference, of_dump, of_this_node
from kproxy.inspect.render import render_manifests
from kproxy.inspect.sysctls import Sysctl
from kproxy.kernel import links
from kproxy.modes.base import ModeRegistry, ModeSpec, Preview, PreviewError
from kproxy.modes.registry import mode_registry
from tests import builders

RULE = Change("chain nat/KUBE-SVC-A", Sign.ADD, "2 rules")
SET = Change("set KUBE-LOOP", Sign.REMOVE)


class Modes:
    """A registry of one mode and another; what the first is given; both answer as the test says."""

    def __init__(self) -> None:
        self.services: list[str] = []
        self.zones: list[str | None] = []
        self.preview = Preview({Family.IPV4: (RULE,), Family.IPV6: ()}, problems=("a problem of a plan",))
        self.error: Exception | None = None

    def _previewed(self, config: ProxyConfig, inputs: Any, facts: Any, *_: object) -> Preview:
        self.services = [each.key for each in inputs]
        self.zones.append(facts.view.zone)
        if self.error is not None:
            raise self.error
        return self.preview

    def registry(self) -> ModeRegistry:
        real = mode_registry()
        config = ProxyConfig(node_name="node-a", proxy_mode="iptables")
        mine: ModeSpec = msgspec.structs.replace(
            real.spec(config), preview=self._previewed, preview_dump=self._previewed
        )
        other: ModeSpec = msgspec.structs.replace(
            real.spec(msgspec.structs.replace(config, proxy_mode="nftables")),
            preview_leftovers=lambda _, found: msgspec.structs.replace(found, others=(*found.others, SET)),
            preview_dump=None,
        )
        return ModeRegistry([mine, other])


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> Modes:
    monkeypatch.setattr(module, "current_sysctls", lambda *_, **__: ())
    monkeypatch.setattr(links, "local_addresses", lambda **_: ("192.168.0.2",))
    return Modes()


@pytest.fixture
def config(tmp_path: Path) -> ProxyConfig:
    objects = [
        {"apiVersion": "v1", "kind": "Service", **builders.service("web")},
        {"apiVersion": "v1", "kind": "Service", **builders.service("bad", ports=[{"port": "x"}])},
        _node("node-a", "zone-a"),
        _node("node-b", "zone-b"),
    ]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    return ProxyConfig(node_name="node-a", manifests=tmp_path)


def _node(name: str, zone: str) -> dict[str, Any]:
    labels = {"topology.kubernetes.io/zone": zone}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def test_the_changes_of_a_mode_and_of_what_others_left(modes: Modes, config: ProxyConfig) -> None:
    found = of_this_node(config, modes.registry())
    assert (found.rules[Family.IPV4], found.others) == ((RULE,), (SET,))
    assert modes.services == ["ns1/web"]
    assert modes.zones == ["zone-a"]
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "Service ns1/bad",
        "a problem of a plan",
    ]
    assert not found.empty
    assert list(found.lines()) == ["+ IPv4 chain nat/KUBE-SVC-A (2 rules)", "- set KUBE-LOOP"]
    assert json.loads(found.json())["changes"] == [
        {"family": "IPv4", "object": "chain nat/KUBE-SVC-A", "sign": "+", "detail": "2 rules"},
        {"object": "set KUBE-LOOP", "sign": "-", "detail": ""},
    ]


@pytest.mark.parametrize(
    ("difference", "empty"),
    [
        (Difference({}), True),
        (Difference({Family.IPV4: (), Family.IPV6: ()}), True),
        (Difference({Family.IPV4: (), Family.IPV6: (RULE,)}), False),
        (Difference({Family.IPV4: ()}, (SET,)), False),
    ],
)
def test_a_difference_without_changes_is_empty(difference: Difference, *, empty: bool) -> None:
    assert difference.empty == empty


def test_a_kernel_that_cannot_be_read_is_named(modes: Modes, config: ProxyConfig) -> None:
    modes.error = ValueError("line 3")
    with pytest.raises(PreviewError, match="the kernel cannot be read: line 3"):
        of_this_node(config, modes.registry())


def test_a_dump_takes_the_place_of_the_kernel(modes: Modes, config: ProxyConfig, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text("*nat\nCOMMIT\n")
    found = of_dump(config, dump, Family.IPV4, modes.registry())
    assert (found.rules[Family.IPV4], found.others) == ((RULE,), ())
    modes.error = ValueError("line 3")
    with pytest.raises(PreviewError, match=f"{dump}: line 3"):
        of_dump(config, dump, Family.IPV4, modes.registry())
    with pytest.raises(ConfigError, match="only for --proxy-mode iptables, not nftables"):
        of_dump(msgspec.structs.replace(config, proxy_mode="nftables"), dump, Family.IPV4, modes.registry())


@pytest.mark.parametrize(
    "inspected", [of_this_node, lambda *given: render_manifests(given[0], Family.IPV4, given[1])]
)
def test_without_the_node_s_pod_cidrs_local_traffic_is_not_known(
    modes: Modes, config: ProxyConfig, inspected: Callable[..., object]
) -> None:
    settings = msgspec.structs.replace(config, detect_local_mode="NodeCIDR")
    with pytest.raises(ConfigError, match="no Node node-a with podCIDRs"):
        inspected(settings, modes.registry())


def sysctl(name: str, now: str | None, *, writable: bool = True, sets: bool = True) -> Sysctl:
    return Sysctl(name, "1", now, writable=writable, effect="", sets=sets)


def test_parameters_that_a_start_sets_are_changes_and_those_it_cannot_are_problems(
    modes: Modes, config: ProxyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (
        sysctl("net/set", "0"),
        sysctl("net/right", "1"),
        sysctl("net/not_ours", "0", sets=False),
        sysctl("net/locked", "0", writable=False),
        sysctl("net/absent", None, writable=False),
    )
    monkeypatch.setattr(module, "current_sysctls", lambda *_, **__: found)
    modes.preview = Preview({})
    difference = of_this_node(config, modes.registry())
    assert difference.others == (SET, Change("sysctl net/set", Sign.CHANGE, "0 -> 1"))
    assert difference.problems[1:] == (
        "sysctl net/locked: is 0, not 1 and cannot be set here; sysctl -w net.locked=1",
    )


def test_a_rendering_is_of_this_node_and_names_each_defect_once(config: ProxyConfig) -> None:
    text, problems = render_manifests(config, Family.IPV4, mode_registry())
    assert "-d 10.96.0.1/32" in text
    assert [problem.object for problem in problems] == ["Service ns1/bad"]
    with pytest.raises(ConfigError, match="--manifests is needed"):
        render_manifests(msgspec.structs.replace(config, manifests=None), Family.IPV4, mode_registry())
