"""The eBPF mode's parts over the kernel's maps and programs: its own proof, its traces, and what is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.backends.core.packets import SharedRules
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.backends.ebpf.config import SocketConfig
from kproxy.backends.ebpf.shared import SharedTable
from kproxy.config.model import ProxyConfig
from kproxy.kernel.bpf.socket_table import KernelSocketTable
from kproxy.kernel.bpf.types import BpfError, BpfFailure
from kproxy.kernel.processes import Runner
from kproxy.modes.base import Preview
from kproxy.modes.ebpf import preflight
from kproxy.modes.ebpf.cleanup import PinLeftovers
from kproxy.modes.ebpf.explain import SocketReader, facts, is_published
from kproxy.modes.ebpf.kernel import (
    TableSettings,
    known_tables,
    open_table,
    remove_table,
    serves_this_process,
    table_settings,
)
from kproxy.modes.ebpf.preview import preview_leftovers
from kproxy.modes.ebpf.self_test import self_test
from kproxy.modes.findings import Level
from kproxy.modes.packet_walk import RulesOfAllModes
from kproxy.node.facts import FamilyFacts
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import Packet, PacketVerdict, Route, Where
from tests import builders
from tests.builders import plan_of
from tests.support.bpf import child_cgroup, private_bpffs

V4 = Family.IPV4
SERVICE = "10.96.77.1"


class World:
    """A bpffs and a cgroup of this process's own, and settings that name them."""

    def __init__(self, bpffs: Path, cgroup: Path) -> None:
        self.bpffs = bpffs
        self.cgroup = cgroup
        self.pins = bpffs / "kproxy"
        self.config = ProxyConfig(
            node_name="node1",
            proxy_mode="ebpf",
            ebpf_cgroup_root=str(cgroup),
            ebpf_pin_directory=str(self.pins),
        )
        self.settings = table_settings(self.config)

    def backend(self, table: object) -> SocketBackend:
        assert isinstance(table, KernelSocketTable)
        found = SocketBackend(V4, SharedTable(table, (V4,)), SocketConfig(V4))
        assert found.sync().error is None
        return found


@pytest.fixture
def world() -> Iterator[World]:
    with private_bpffs() as bpffs, child_cgroup("mode") as cgroup:
        yield World(bpffs, cgroup)


def test_a_table_with_an_effect_passes_the_self_test_and_keeps_nothing_of_it(world: World) -> None:
    table = open_table(world.settings)
    backend = world.backend(table)
    assert self_test(backend) is None
    assert table.frontends(V4) == {}
    table.remove()


def test_a_table_without_effect_fails_it(world: World) -> None:
    elsewhere = world.cgroup / "elsewhere"
    elsewhere.mkdir()
    settings = TableSettings(str(elsewhere), str(world.pins))
    assert not serves_this_process(settings)
    assert serves_this_process(world.settings)
    table = open_table(settings)
    reason = self_test(world.backend(table)) or ""
    assert "192.0.0.8 port 10256, does not arrive" in reason
    assert table.frontends(V4) == {}
    table.remove()
    elsewhere.rmdir()


def test_a_second_table_at_the_same_cgroup_is_refused_and_names_the_first(world: World) -> None:
    first = open_table(world.settings)
    world.backend(first)
    with pytest.raises(BpfError, match=r"another kproxy's, are at .* connect4 \(program \d+") as other:
        open_table(TableSettings(str(world.cgroup), str(world.bpffs / "second")))
    with pytest.raises(BpfError, match="another process has its maps") as same:
        open_table(world.settings)
    assert (other.value.kind, same.value.kind) == (BpfFailure.OCCUPIED, BpfFailure.OCCUPIED)
    assert is_published(world.pins)
    first.remove()


def test_a_clean_up_finds_the_pins_wherever_they_are_but_not_those_in_use(world: World) -> None:
    table = open_table(world.settings)
    world.backend(table)
    assert world.pins in known_tables()
    leftovers = PinLeftovers(None, Runner())
    with capture_logs() as logs:
        assert remove_table(world.pins)
    assert [each["event"] for each in logs] == ["socket_table_kept"]
    assert is_published(world.pins)
    table.close()
    with capture_logs() as logs:
        assert leftovers.clear(kube_proxy=False)
        assert leftovers.dissolve()
    assert {"event": "removed", "socket_table": str(world.pins), "log_level": "info"} in logs
    assert not world.pins.exists()
    assert world.pins not in known_tables()


def test_another_mode_previews_and_removes_the_pins(world: World) -> None:
    assert preview_leftovers(world.config, Preview({})).others == ()
    table = open_table(world.settings)
    world.backend(table)
    table.close()
    (change,) = preview_leftovers(world.config, Preview({})).others
    assert str(world.pins) in str(change)
    PinLeftovers(world.config, Runner()).begin({})
    assert not world.pins.exists()


class AllRoutes:
    def route(self, *_: object, **__: object) -> Route:
        return Route("eth0")

    def is_local(self, _: str) -> bool:
        return False


@pytest.mark.parametrize(("where", "served"), [(Where.NODE, True), (Where.POD, True), (Where.OUTSIDE, False)])
def test_explain_follows_clients_of_this_node_through_the_maps(
    world: World, where: Where, *, served: bool
) -> None:
    reader = SocketReader(world.config, Runner())
    assert reader.read_kernel(V4, SharedRules()).chains == ()
    table = open_table(world.settings)
    backend = world.backend(table)
    backend.update([plan_of(builders.service(ip=SERVICE), builders.endpoint_slice("10.1.0.1", "10.1.0.2"))])
    backend.sync()
    walker = RulesOfAllModes([reader])
    packet = Packet("10.1.0.9", Protocol.TCP, SERVICE, 80, where)
    found = walker.walk(walker.read_kernel(V4), packet, AllRoutes())
    # Who asks from outside the process may not know its settings.
    other = RulesOfAllModes([SocketReader(ProxyConfig(node_name="n"), Runner())])
    assert other.walk(other.read_kernel(V4), packet, AllRoutes()) == found
    node = FamilyFacts(None, (), localhost_node_ports=False)
    intended = facts(world.config, V4, node)
    (port,) = backend.plans["ns1/svc1"].ports
    assert intended.at_socket(packet, port) is served
    table.remove()
    assert (
        facts(world.config, V4, FamilyFacts(None, (), localhost_node_ports=False)).at_socket(packet, port)
        is False
    )
    if not served:
        assert [each.verdict for each in found] == [PacketVerdict.UNTOUCHED]
        return
    assert [(each.endpoint, each.probability, each.masquerade) for each in found] == [
        ("10.1.0.1:80", 0.5, False),
        ("10.1.0.2:80", 0.5, False),
    ]
    assert found[0].steps == (f"socket table: {SERVICE}:80 -> 10.1.0.1:80, 1 of 2 slots",)


def test_a_check_finds_nothing_missing_and_leaves_nothing(world: World) -> None:
    found = {each.subject: each.level for each in preflight.check(world.config, {})}
    subjects = ("cgroup2", "bpffs", "BPF programs", "BPF hooks")
    assert [found[each] for each in subjects] == [Level.OK] * 4
    assert [each.name for each in world.bpffs.iterdir() if each.is_dir()] == []


def test_a_check_names_what_is_missing_and_that_services_are_served(tmp_path: Path) -> None:
    config = ProxyConfig(
        node_name="n", ebpf_cgroup_root=str(tmp_path), ebpf_pin_directory=str(tmp_path / "pins")
    )
    found = {each.subject: each for each in preflight.check(config, {})}
    for subject, words in (("cgroup2", "not a directory of cgroup2"), ("bpffs", "is on no bpffs")):
        assert found[subject].level is Level.WARNING
        assert words in found[subject].found
        assert "services are served by the nftables table" in found[subject].found


def test_a_check_names_programs_of_others(world: World) -> None:
    with KernelTable(world) as table:
        assert table is not None
        other = ProxyConfig(
            node_name="n",
            ebpf_cgroup_root=str(world.cgroup),
            ebpf_pin_directory=str(world.bpffs / "second"),
        )
        own = {each.subject: each for each in preflight.check(world.config, {})}
        found = {each.subject: each for each in preflight.check(other, {})}
    assert own["BPF hooks"].level is Level.OK
    assert "of another is at" in found["BPF hooks"].found


class KernelTable:
    """A published table, removed at the end."""

    def __init__(self, world: World) -> None:
        self._table = open_table(world.settings)
        world.backend(self._table)

    def __enter__(self) -> object:
        return self._table

    def __exit__(self, *_: object) -> None:
        self._table.remove()
