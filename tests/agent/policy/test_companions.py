"""What the enforcement tells its companions, and what results of CNI change in it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.agent.policy.edges import HeldCompanion
from kproxy.config.model import ProxyConfig
from kproxy.plan.policy.model import Touched
from kproxy.sources.cni_cache import CniCache, CniResult
from tests.agent.policy.rig import DENY_ALL, ON, V4, V6, Rig, cluster, node
from tests.state.policy_objects import namespace, pod, policy

RANGES = ("10.1.0.0/24", "fd00::/64")


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.agent.cni = CniCache(made.store.policy_wake, Path("/nowhere"))
    return made


def held_of(rig: Rig) -> HeldCompanion:
    (found,) = (each for each in rig.agent.companions if isinstance(each, HeldCompanion))
    return found


def test_companions_hear_of_every_sync_and_of_what_it_changed(rig: Rig) -> None:
    heard: list[tuple[Family, Touched]] = []

    class Companion(HeldCompanion):
        def applied(self, family: Family, touched: Touched) -> None:
            heard.append((family, touched))

    rig.agent.companions = (Companion(rig.agent, 1),)
    rig.lists()
    rig.settle()
    assert heard == [(V4, Touched()), (V6, Touched())]
    rig.put(namespace("shop"), pod("web", "10.1.0.1"), policy("deny", DENY_ALL))
    rig.settle(0.05)
    assert [(family, touched.addresses) for family, touched in heard[2:]] == [(V4, frozenset({"10.1.0.1"}))]
    rig.kernel.errors[V4] = "busy"
    rig.put(pod("db", "10.1.0.2"))
    rig.settle(0.05)
    assert len(heard) == 3


def test_packets_are_held_for_what_is_not_in_the_kernel_yet(rig: Rig) -> None:
    rig.lists(*cluster(), node=node(*RANGES))
    rig.settle()
    assert held_of(rig).known == {"10.1.0.1", "10.1.0.2"}
    assert rig.agent.pod_ranges == RANGES
    rig.kernel.errors[V4] = "busy"
    rig.put(pod("new", "10.1.0.3"))
    rig.settle(0.05)
    assert "10.1.0.3" not in held_of(rig).known
    rig.kernel.errors.clear()
    rig.settle(60)
    assert "10.1.0.3" in held_of(rig).known


def test_a_result_of_cni_isolates_a_pod_before_the_api_has_its_address(rig: Rig) -> None:
    rig.lists(namespace("shop"), pod("web", ""), policy("deny", DENY_ALL))
    rig.settle()
    assert rig.isolated()[V4] == set()
    woken = threading.Thread(target=rig.store.policy_wait, args=(10,))
    woken.start()
    rig.agent.cni.results = {
        "x": CniResult("shop/web", "uid-web", ("10.1.0.7", "fd00::7"), ranges=("10.1.0.0/24",))
    }
    rig.store.policy_wake()
    woken.join(10)
    rig.settle(0.05)
    assert rig.isolated() == {V4: {"10.1.0.7"}, V6: {"fd00::7"}}
    assert rig.agent.pod_ranges == ("10.1.0.0/24",)
    rig.kernel.syncs.clear()
    rig.settle(0.05)
    assert rig.kernel.syncs == []


@pytest.mark.parametrize(
    ("config", "holds"),
    [
        (ProxyConfig(node_name="n1", network_policy=True, network_policy_unknown_pods="hold"), True),
        (ProxyConfig(node_name="n1", network_policy=True, network_policy_unknown_pods="drop"), False),
        (ProxyConfig(node_name="n1", network_policy=False, network_policy_unknown_pods="hold"), False),
    ],
    ids=("hold", "drop", "off"),
)
def test_the_queue_is_open_only_while_packets_are_held(rig: Rig, config: ProxyConfig, holds: bool) -> None:
    companion = held_of(rig)
    turned: list[bool] = []
    companion._held.turn = lambda *, on: turned.append(on)  # type: ignore[method-assign]
    rig.agent.reconfigure(config)
    assert turned == [holds]
    assert rig.agent.config is config
    assert ON.network_policy
