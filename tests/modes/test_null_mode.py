"""A mode that only this test knows: what a new mode has to bring, and that nothing else asks for more.

It counts plans and writes nothing. It runs through the run loop, a switch to it and from it, `kproxy render`,
`diff`, `check` and `cleanup`, by its traits and its one ModeSpec.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import Drift, Measurement, SyncReport
from kproxy.config import modes as config_modes
from kproxy.config.model import ConfigError, ProxyConfig, mode_name, validate
from kproxy.config.modes import TRAITS, ModeTraits
from kproxy.inspect import diff
from kproxy.inspect.render import render_manifests
from kproxy.inspect.sysctls import current_sysctls
from kproxy.kernel.links import AddressNews
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.base import ModeRegistry, ModeSpec, Preview, RequiredSysctl
from kproxy.modes.findings import Finding, ok
from kproxy.modes.leftovers import remove_everything
from kproxy.modes.registry import MODES, mode_registry
from kproxy.node.facts import FamilyFacts, NodeFacts
from kproxy.plan.model import ServicePlan
from kproxy.state.tables import ServiceInput
from kproxy.telemetry import series
from tests.agent.switch_rig import BOTH, CONFIG, FakeMode, Kernel, Rig

TRAITS_OF_NULL = ModeTraits(name="null", section="iptables", masquerade_section="iptables")
NULL = msgspec.structs.replace(CONFIG, proxy_mode="null")
NFTABLES = msgspec.structs.replace(CONFIG, proxy_mode="nftables")
MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ipFamilies: [IPv4]
  ports: [{port: 80, protocol: TCP}]
"""


class NullBackend:
    """Keeps the keys of the services that have ports."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.planned: set[str] = set()
        self.on_progress: Callable[[], None] = lambda: None
        self.on_timed_sync: Callable[[SyncReport, float], None] = lambda _, __: None
        self.gives_way: Callable[[], bool] = lambda: False

    def update(self, plans: Iterable[ServicePlan]) -> None:
        for plan in plans:
            (self.planned.add if plan.ports else self.planned.discard)(plan.key)

    def sync(self, budget: float | None = None) -> SyncReport:
        return SyncReport({}, None)

    def invalidate(self) -> None:
        pass

    def retry(self) -> None:
        pass

    def check(self, *, full: bool = False) -> tuple[Drift, ...]:
        return ()

    def run_timers(self) -> float | None:
        return None


class NullMode:
    """Both families, with a NullBackend each."""

    families = BOTH
    variants: Mapping[Family, Variant] = {}

    def __init__(self) -> None:
        self.backends = {family: NullBackend(family) for family in BOTH}

    def configure(self, family: Family, facts: FamilyFacts) -> NullBackend:
        return self.backends[family]

    def reconfigure(self, config: ProxyConfig) -> None:
        pass

    def on_first_sync(self) -> None:
        pass

    def run_timers(self) -> float | None:
        return None

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:
        return {}

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        return Measurement()


class Asked:
    """Leftovers of a mode that write down what they are asked for."""

    def __init__(self, mode: str, journal: list[str]) -> None:
        self._mode = mode
        self._journal = journal
        self.cleared = True

    def begin(self, used: Mapping[Family, Variant]) -> None:
        self._journal.append(f"{self._mode} begins")

    def run_timers(self) -> float | None:
        return None

    def clear(self, *, kube_proxy: bool) -> bool:
        self._journal.append(f"{self._mode} cleared")
        return self.cleared

    def dissolve(self) -> bool:
        self._journal.append(f"{self._mode} dissolved")
        return True


class World:
    """The product's modes in memory and the null mode, with a journal of what leftovers were asked for."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.journal: list[str] = []
        self.null = NullMode()
        self.specs = (*(self._in_memory(spec) for spec in MODES), self._null_spec())
        self.modes = ModeRegistry(self.specs)

    def _in_memory(self, spec: ModeSpec) -> ModeSpec:
        return msgspec.structs.replace(
            spec,
            make=lambda config, _: FakeMode(self.kernel, config),
            leftovers=lambda _, __: Asked(spec.name, self.journal),
            preview_leftovers=lambda _, found: found,
        )

    def _null_spec(self) -> ModeSpec:
        return ModeSpec(
            traits=TRAITS_OF_NULL,
            written="nothing",
            taken_away="nothing",
            metrics=frozenset(),
            make=self._make,
            set_sysctls=lambda _: None,
            sysctls=_sysctls,
            render=_render,
            preview=_preview,
            leftovers=lambda _, __: Asked("null", self.journal),
            preview_leftovers=lambda _, found: found,
            check=_check,
        )

    def _make(self, _config: ProxyConfig, _runner: Runner) -> NullMode:
        return self.null


def _sysctls(_config: ProxyConfig, _localhost: bool) -> Iterator[RequiredSysctl]:
    yield RequiredSysctl("net/null/count", "1", "plans are counted")


def _render(config: ProxyConfig, family: Family, facts: FamilyFacts, plans: Collection[ServicePlan]) -> str:
    return f"{len(plans)} plans for {family}"


def _preview(config: ProxyConfig, inputs: Sequence[ServiceInput], facts: NodeFacts) -> Preview:
    return Preview(dict.fromkeys(BOTH, ()), problems=(f"{len(inputs)} services",))


def _check(config: ProxyConfig, variants: Mapping[Family, Variant]) -> Iterator[Finding]:
    yield ok("null", "counts")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(config_modes, "TRAITS", (*TRAITS, TRAITS_OF_NULL))
    return World()


@pytest.fixture
def manifests(tmp_path: Path) -> ProxyConfig:
    (tmp_path / "web.yaml").write_text(MANIFESTS)
    return msgspec.structs.replace(NULL, manifests=tmp_path)


def test_the_loop_runs_it_and_asks_every_other_mode_for_leftovers(world: World) -> None:
    rig = Rig(lambda _: world.null, NULL, world.modes)
    rig.work()
    assert [backend.planned for backend in world.null.backends.values()] == [{"ns1/a", "ns1/b"}] * 2
    assert world.journal == ["ebpf begins", "nftables begins", "ipvs begins", "iptables begins"]
    assert rig.store.pending_since is None
    rig.add("c", 3)
    rig.work()
    assert "ns1/c" in world.null.backends[Family.IPV6].planned
    assert len(world.journal) == 4


def test_a_running_process_changes_to_it_and_from_it(world: World) -> None:
    rig = Rig(lambda config: FakeMode(world.kernel, config), NFTABLES, world.modes)
    rig.work()
    assert world.journal == ["null begins", "ebpf begins", "ipvs begins", "iptables begins"]
    world.journal.clear()
    assert rig.work(NULL)[-1] == "mode_switched"
    assert rig.said("mode_switch_planned")["first"] == "nothing"
    assert rig.agent.mode is world.null
    assert world.null.backends[Family.IPV4].planned == {"ns1/a", "ns1/b"}
    assert world.journal == ["ebpf begins", "nftables begins", "ipvs begins", "iptables begins"]
    assert rig.work(NFTABLES)[-1] == "mode_switched"
    assert rig.said("mode_switch_planned")["afterwards"] == "nothing"
    assert world.kernel.of("nftables")[Family.IPV4] == {"ns1/a", "ns1/b"}


def test_it_renders_and_previews(world: World, manifests: ProxyConfig) -> None:
    assert render_manifests(manifests, Family.IPV4, world.modes)[0] == "1 plans for IPv4"
    found = diff.of_this_node(manifests, world.modes)
    assert found.rules == {Family.IPV4: (), Family.IPV6: ()}
    assert "1 services" in found.problems
    with pytest.raises(ConfigError, match="only for --proxy-mode iptables, not null"):
        diff.of_dump(manifests, Path("nothing"), Family.IPV4, world.modes)


def test_its_settings_sysctls_and_metrics_are_read(world: World, tmp_path: Path) -> None:
    validate(NULL)
    assert mode_name(msgspec.structs.replace(NULL, iptables_variant=Variant.LEGACY)) == "null"
    looked = current_sysctls(
        NULL, BOTH, world.modes.spec(NULL), localhost=True, proc=tmp_path, sys=tmp_path, cores=2
    )
    assert "net/null/count" in {each.name for each in looked}
    assert series.RULES.name in world.modes.foreign_metrics("null")


def test_without_its_traits_there_is_no_such_mode() -> None:
    with pytest.raises(ValueError, match="no proxy mode 'null'"):
        mode_name(msgspec.structs.replace(NULL, iptables_variant=Variant.LEGACY))


@pytest.mark.parametrize("failing", [False, True])
def test_cleanup_asks_every_mode_in_two_steps(world: World, *, failing: bool) -> None:
    if failing:
        stuck = Asked("ipvs", world.journal)
        stuck.cleared = False
        specs = [
            msgspec.structs.replace(spec, leftovers=lambda _, __: stuck) if spec.name == "ipvs" else spec
            for spec in world.specs
        ]
    else:
        specs = list(world.specs)
    assert remove_everything(specs, kube_proxy=True) is not failing
    order = ["null", "ebpf", "nftables", "ipvs", "iptables"]
    second = [mode for mode in order if not (failing and mode == "ipvs")]
    assert world.journal == [
        *(f"{mode} cleared" for mode in order),
        *(f"{mode} dissolved" for mode in second),
    ]


def test_every_metric_that_a_mode_names_is_one() -> None:
    known = {each.name for each in series.ALL}
    assert all(spec.metrics and spec.metrics <= known for spec in MODES)


def test_a_series_that_every_mode_has_is_hidden_in_none() -> None:
    hidden = [mode_registry().foreign_metrics(spec.name) for spec in MODES]
    assert all(series.SYNC.name not in each for each in hidden)
