"""The eBPF mode: two halves as one, and everything by which the socket table may fail."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, CheckError, PortTraffic
from kproxy.backends.ebpf.backend import SocketBackend
from kproxy.backends.ebpf.shared import FIRST_SIZES
from kproxy.config.model import ProxyConfig
from kproxy.kernel.bpf.types import BpfError, BpfFailure, SocketTable
from kproxy.kernel.nft.commands import Transaction
from kproxy.kernel.nft.types import NftError, NftFailure
from kproxy.modes.base import SocketTableState
from kproxy.modes.ebpf.kernel import TableSettings, foreign_programs
from kproxy.modes.ebpf.mode import EbpfMode
from kproxy.modes.ebpf.sockets import FIRST_PAUSE, LONGEST_PAUSE, Kernel
from kproxy.node.facts import NodeFacts, node_facts
from kproxy.plan.model import ServicePlan
from kproxy.state.wire import Node
from tests import builders
from tests.builders import plan_of
from tests.support.fake_nft import FakeNft
from tests.support.fake_socket_table import FakeSocketTable

CONFIG = ProxyConfig(node_name="node1", proxy_mode="ebpf")
NODE = msgspec.convert(
    {
        "metadata": {"name": "node1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]},
    },
    Node,
)
V4, V6 = Family.IPV4, Family.IPV6
SERVICE = "10.96.0.1"
ELEMENT = f"{SERVICE} . 6 . 80"


class Nft(FakeNft):
    """Calls `before` before each transaction."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def commit(self, transaction: Transaction) -> None:
        self.before()
        super().commit(transaction)


class Rig:
    """A mode over a table in memory. `refusal`: why none can be opened; `effect`: why the self-test fails."""

    def __init__(self, refusal: BpfError | None = None, table: FakeSocketTable | None = None) -> None:
        self.now = 0.0
        self.nft = Nft()
        self.table = FakeSocketTable(FIRST_SIZES) if table is None else table
        self.refusal = refusal
        self.effect: str | None = None
        self.tests = 0
        self.opened: list[TableSettings] = []
        self.withdrawn: list[str] = []
        kernel = Kernel(self._open, self._withdraw, lambda _: True, self._test)
        self.mode = EbpfMode(CONFIG, self.nft, kernel, lambda: self.now)
        facts = node_facts(CONFIG, NODE, ("192.168.0.2",))
        assert facts is not None
        self.facts: NodeFacts = facts
        self.backends: dict[Family, Backend] = {}
        self.configure()

    def configure(self) -> None:
        self.backends = {f: self.mode.configure(f, self.facts.families[f]) for f in self.mode.families}

    def _open(self, settings: TableSettings) -> SocketTable:
        self.opened.append(settings)
        if self.refusal is not None:
            raise self.refusal
        self.table = self.table.restarted()
        return self.table

    def _withdraw(self, settings: TableSettings) -> None:
        self.withdrawn.append(settings.pin_directory)

    def _test(self, _: SocketBackend) -> str | None:
        self.tests += 1
        return self.effect

    def update(self, *plans: ServicePlan) -> None:
        self.backends[V4].update(plans)

    def sync(self) -> dict[str, int]:
        """Sync both families; return what was written for IPv4."""
        written = {family: dict(backend.sync().changes) for family, backend in self.backends.items()}
        return written[V4]

    @property
    def endpoints(self) -> list[str]:
        """What programs find for the service."""
        return self.table.contents(V4).get(f"{SERVICE}:80/TCP", [])

    @property
    def packets(self) -> bool:
        """Whether the nftables table serves the service."""
        return ELEMENT in self.nft.table(V4).containers["services"].elements

    @property
    def reason(self) -> str:
        return self.mode.socket_table.reason

    def later(self) -> None:
        """Let the time of the next attempt come."""
        wait = self.mode.run_timers()
        assert wait is not None
        self.now += wait
        self.mode.run_timers()


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def serving(rig: Rig) -> Rig:
    rig.update(web("10.1.0.1"))
    rig.sync()
    assert rig.endpoints == ["10.1.0.1:80"]
    return rig


def web(*ips: str) -> ServicePlan:
    return plan_of(builders.service(ip=SERVICE), builders.endpoint_slice(*ips))


def test_a_service_is_in_both_halves_and_each_is_counted(rig: Rig) -> None:
    rig.update(web("10.1.0.1", "10.1.0.2"))
    written = rig.sync()
    assert set(rig.endpoints) == {"10.1.0.1:80", "10.1.0.2:80"}
    assert rig.packets
    assert written["frontends"] == 1
    assert written["elements"] > 1
    assert rig.mode.socket_table == SocketTableState(serving=True)
    assert rig.tests == len(rig.mode.families)
    assert [rig.mode.measure(family, traffic=False).frontends for family in (V4, V6)] == [1, 0]


def test_maps_of_all_families_are_written_before_the_first_transaction(serving: Rig) -> None:
    service = builders.service(name="six", ip="fd00:96::1")
    six = plan_of(service, builders.endpoint_slice("fd00:1::1", service="six"), family=V6)
    serving.update(web("10.1.0.2"))
    serving.backends[V6].update([six])
    seen: list[tuple[list[str], list[str]]] = []
    six_at = "[fd00:96::1]:80/TCP"
    serving.nft.before = lambda: seen.append((serving.endpoints, serving.table.contents(V6).get(six_at, [])))
    serving.sync()
    assert seen[0] == (["10.1.0.2:80"], ["[fd00:1::1]:80"])


def test_an_emptied_service_leaves_the_sockets_before_the_packets(serving: Rig) -> None:
    serving.update(web())
    seen: list[list[str]] = []
    serving.nft.before = lambda: seen.append(serving.endpoints)
    serving.sync()
    assert seen[0] == []


def test_connections_of_both_halves_are_summed(serving: Rig) -> None:
    serving.nft.table(V4).containers["services"].counts[ELEMENT] = 3, 180
    serving.table.maps.counts[:] = [4] * len(serving.table.maps.counts)
    (port,) = serving.mode.measure(V4, traffic=True).traffic
    assert port == PortTraffic("ns1/svc1:p80", "TCP", 7, (3, 180))


@pytest.mark.parametrize("kind", [BpfFailure.MISSING, BpfFailure.REFUSED, BpfFailure.INTERRUPTED])
def test_without_a_table_packets_serve_and_the_reason_is_named(kind: BpfFailure) -> None:
    with capture_logs() as logs:
        rig = Rig(refusal=BpfError(kind, "no bpffs here"))
        rig.update(web("10.1.0.1"))
        rig.sync()
        rig.later()
    assert rig.packets
    state = rig.mode.socket_table
    assert (state.serving, state.reason) == (False, "no bpffs here")
    assert state.since is not None
    # What a former process attached would lead to endpoints of that time.
    assert set(rig.withdrawn) == {"/sys/fs/bpf/kproxy"}
    said = [each for each in logs if each["event"] == "socket_table_degraded"]
    assert [(each["log_level"], each["reason"]) for each in said] == [("warning", "no bpffs here")]


def test_another_process_that_has_the_table_keeps_it() -> None:
    rig = Rig(refusal=BpfError(BpfFailure.OCCUPIED, "another process has its maps and programs there"))
    assert rig.withdrawn == []
    assert "another process" in rig.reason


def test_a_table_that_can_be_had_later_is_filled_then() -> None:
    rig = Rig(refusal=BpfError(BpfFailure.MISSING, "no bpffs here"))
    rig.update(web("10.1.0.1"))
    rig.sync()
    rig.refusal = None
    rig.later()
    assert (rig.endpoints, rig.mode.socket_table) == (["10.1.0.1:80"], SocketTableState(serving=True))
    assert rig.mode.run_timers() is None
    # What the timer wrote is in the next report.
    assert rig.sync()["frontends"] == 1


def test_attempts_become_rarer_up_to_a_limit() -> None:
    rig = Rig(refusal=BpfError(BpfFailure.MISSING, "no bpffs here"))
    waits = []
    for _ in range(9):
        wait = rig.mode.run_timers()
        assert wait is not None
        waits.append(wait)
        rig.now += wait
    assert (waits[0], waits[1], waits[-1]) == (FIRST_PAUSE, 2 * FIRST_PAUSE, LONGEST_PAUSE)


def test_a_reload_tries_at_once() -> None:
    rig = Rig(refusal=BpfError(BpfFailure.MISSING, "no bpffs here"))
    rig.refusal = None
    rig.backends[V4].retry()
    assert rig.mode.run_timers() is None
    assert len(rig.opened) == 2


@pytest.mark.parametrize("published", [False, True], ids=["fresh", "repair"])
def test_maps_that_cannot_be_published_are_kept_up_to_date(rig: Rig, *, published: bool) -> None:
    rig.update(web("10.1.0.1"))
    if published:
        rig.sync()
        rig.table.break_link("link connect4")
        assert [each.object for each in rig.backends[V4].check()] == ["link connect4"]
    rig.table.faults.hook = True
    assert rig.backends[V4].sync().error is None
    rig.sync()
    assert rig.reason == "another program has the hook for itself"
    rig.update(web("10.1.0.2"))
    rig.sync()
    assert rig.table.maps.contents(V4) == {f"{SERVICE}:80/TCP": ["10.1.0.2:80"]}
    rig.table.faults.hook = False
    rig.later()
    assert (rig.endpoints, rig.mode.socket_table.serving) == (["10.1.0.2:80"], True)


def test_a_table_without_effect_is_named_and_tested_again(rig: Rig) -> None:
    rig.effect = "the self-test does not arrive"
    rig.update(web("10.1.0.1"))
    rig.sync()
    assert rig.reason == "IPv4: the self-test does not arrive"
    rig.effect = None
    rig.later()
    assert rig.mode.socket_table == SocketTableState(serving=True)


def test_every_publication_is_tested(serving: Rig) -> None:
    before = serving.tests
    serving.sync()
    assert serving.tests == before
    serving.table.break_link("link connect4")
    serving.backends[V4].check()
    serving.sync()
    assert serving.tests > before


def test_maps_that_cannot_be_written_do_not_serve(serving: Rig) -> None:
    serving.update(web("10.1.0.2"))

    def refuse(_: object) -> object:
        raise BpfError(BpfFailure.REFUSED, "no answer")

    serving.table.frontends = refuse  # type: ignore[method-assign,assignment]
    serving.table.maps.frontends = refuse  # type: ignore[method-assign,assignment]
    serving.backends[V4].invalidate()
    report = serving.backends[V4].sync()
    assert report.error is None
    assert serving.packets
    assert serving.endpoints == []
    assert "the maps cannot be written: refused: no answer" in serving.reason


def test_a_service_without_room_at_the_sockets_is_degraded_and_served(rig: Rig) -> None:
    rig.table.faults.refuse = lambda text: text.startswith(SERVICE)
    rig.update(web("10.1.0.1"))
    report = rig.backends[V4].sync()
    assert "no memory" in report.degraded["ns1/svc1"]
    assert report.failed == {}
    assert rig.packets


def test_a_failure_of_the_nftables_half_does_not_stop_the_sockets(serving: Rig) -> None:
    serving.update(web("10.1.0.2"))
    serving.nft.lose = "before"
    report = serving.backends[V4].sync()
    assert (report.error is None, serving.endpoints) == (False, ["10.1.0.2:80"])


def test_programs_of_others_on_the_hooks_end_the_table(serving: Rig) -> None:
    serving.table.add_foreign("hook connect4")
    assert serving.backends[V4].check() == ()
    assert "connect4 (program 7 of others)" in serving.reason
    assert serving.endpoints == []
    assert serving.packets


def test_programs_of_others_are_named_and_nothing_else_is() -> None:
    table = FakeSocketTable(FIRST_SIZES)
    assert foreign_programs(table) is None
    table.break_link("link connect6")
    assert foreign_programs(table) is None
    table.add_foreign("hook connect6")
    assert foreign_programs(table) == (
        "programs of others, such as Cilium's, Calico's or another kproxy's, are at "
        "connect6 (program 7 of others)"
    )


def test_entries_that_others_change_are_named_and_repaired(serving: Rig) -> None:
    serving.table.maps.held[V4].clear()
    (drift,) = serving.backends[V4].check(full=True)
    assert drift.object == f"frontend {SERVICE}:80/TCP"
    serving.sync()
    assert serving.endpoints == ["10.1.0.1:80"]


def test_drift_of_the_table_is_found_while_the_sockets_cannot_be_read(serving: Rig) -> None:
    def refuse() -> object:
        raise BpfError(BpfFailure.INTERRUPTED, "no memory")

    serving.table.problems = refuse  # type: ignore[method-assign,assignment]
    assert serving.backends[V4].check(full=True) == ()
    assert "cannot be read" in serving.reason


def test_the_nftables_half_says_that_it_cannot_be_compared(serving: Rig) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise NftError(NftFailure.INTERRUPTED, "no answer")

    serving.nft.reading = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(CheckError, match="no answer"):
        serving.backends[V4].check(full=True)


def test_masquerade_all_empties_the_sockets(serving: Rig) -> None:
    tests = serving.tests
    serving.mode.reconfigure(msgspec.structs.replace(CONFIG, masquerade_all=True))
    serving.configure()
    serving.sync()
    assert (serving.endpoints, serving.packets) == ([], True)
    assert (serving.tests, serving.reason) == (tests, "")


def test_other_pins_move_the_table(serving: Rig) -> None:
    serving.mode.reconfigure(msgspec.structs.replace(CONFIG, ebpf_pin_directory="/sys/fs/bpf/other"))
    serving.configure()
    serving.sync()
    assert serving.withdrawn == ["/sys/fs/bpf/kproxy"]
    assert serving.opened[-1].pin_directory == "/sys/fs/bpf/other"
    assert serving.endpoints == ["10.1.0.1:80"]


def test_another_scope_keeps_what_serves(serving: Rig) -> None:
    serving.mode.reconfigure(msgspec.structs.replace(CONFIG, ebpf_host_namespace_only=True))
    assert serving.endpoints == ["10.1.0.1:80"]
    assert (serving.withdrawn, serving.opened[-1].host_namespace_only) == ([], True)
    serving.configure()
    serving.sync()
    assert serving.mode.socket_table.serving


def test_a_closed_mode_leaves_what_serves_and_can_be_measured(serving: Rig) -> None:
    serving.mode.close()
    assert serving.endpoints == ["10.1.0.1:80"]
    assert serving.mode.measure(V4, traffic=True).frontends is None


def test_a_restart_adopts_what_serves(serving: Rig) -> None:
    serving.mode.close()
    again = Rig(table=serving.table)
    assert again.endpoints == ["10.1.0.1:80"]
    again.update(web("10.1.0.1"))
    assert "frontends" not in again.sync()
    assert again.mode.socket_table.serving
