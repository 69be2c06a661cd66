"""The interface of a proxy mode: a running mode, its leftovers in the kernel, and its description.

The run loop, `kproxy render`, `diff`, `check` and `cleanup` know modes by this interface only; the registry
(registry.py) is the one place that lists them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, Drift, Measurement
from kproxy.backends.core.change import Change
from kproxy.backends.core.foreign_writes import RulesetWatches
from kproxy.backends.core.packets import HookChain, SharedRules
from kproxy.config.model import ProxyConfig
from kproxy.config.modes import ModeTraits
from kproxy.kernel.links import AddressNews
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.findings import Finding
from kproxy.modes.kube_proxy_tables import warn_of_kube_proxy_tables
from kproxy.modes.rule_features import Feature
from kproxy.node.facts import FamilyFacts, NodeFacts
from kproxy.plan.model import EndpointPlan, PortPlan, ServicePlan
from kproxy.plan.outcomes import ModeFacts
from kproxy.plan.weights import effective
from kproxy.state.tables import ServiceInput


class ModeUnavailable(RuntimeError):
    """The mode cannot run on this node; the message gives the reason and a remedy."""


class NoFamilyUsable(ModeUnavailable):
    """Neither IP family can be served on this node; `reasons` has the reason for each."""

    def __init__(self, reasons: Mapping[Family, str]) -> None:
        super().__init__("; ".join(f"{family}: {reason}" for family, reason in reasons.items()))
        self.reasons = reasons


class Mode(Protocol):
    """One way of programming this node."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that can be served on this node."""

    @property
    def variants(self) -> Mapping[Family, Variant]:
        """The iptables variant in which each family's rules are written; empty if none are."""

    def configure(self, family: Family, facts: FamilyFacts) -> Backend:
        """Return the backend of a family; the first call makes it, later calls pass it new facts."""

    def reconfigure(self, config: ProxyConfig) -> None:
        """Apply new settings; the caller configures every family again afterwards.

        A setting that cannot be used is logged and keeps its former value.
        """

    def on_first_sync(self) -> None:
        """Remove leftovers of this mode itself in another form, once every family has been synced.

        Called after `Leftovers.begin` of the other modes.
        """

    def run_timers(self) -> float | None:
        """Run due periodic work; return seconds until the next call, or None."""

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:
        """Compare the mode's own addresses with the kernel's, for changes that others made.

        Drifted addresses become pending again. Raises CheckError.
        """

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        """Count rules, and packets if `traffic`; may run beside the run loop, on one thread at a time.

        Raises MeasureError.
        """


class SocketTableState(msgspec.Struct, frozen=True):
    """Whether connections get their endpoints at the clients' sockets.

    If not, `reason` says why, since `since`, and packets are translated one by one; empty: not yet.
    """

    serving: bool = False
    reason: str = ""
    since: datetime | None = None


@runtime_checkable
class HasSocketTable(Protocol):
    """A mode that chooses endpoints at clients' sockets where it can."""

    @property
    def socket_table(self) -> SocketTableState:
        """The present state; may be read from any thread."""


@runtime_checkable
class HoldsResources(Protocol):
    """A mode that has something in the kernel which only one mode, or process, can have."""

    def close(self) -> None:
        """Let it go: another mode has taken over, or the process ends. What serves traffic serves on.

        The mode is not used any more, but it may still be measured from another thread.
        """


def close_mode(mode: Mode) -> None:
    """Let go what a mode holds that is not used any more."""
    if isinstance(mode, HoldsResources):
        mode.close()


@runtime_checkable
class SharesWrites(Protocol):
    """A mode that has to know the writes of this process to its ruleset that it does not make itself."""

    def share_writes(self, watches: RulesetWatches) -> None:
        """Count foreign writes together with others; called once, before the first `configure`."""


class Leftovers(Protocol):
    """The leftovers of one mode in the kernel, for the mode that took over and for `kproxy cleanup`.

    The process that left them may have been killed at any moment. No method raises; failures are logged.
    """

    def begin(self, used: Mapping[Family, Variant]) -> None:
        """After the first sync of another mode, remove what can be removed at once and find what has to wait.

        `used` is the iptables variant in which the other mode writes each family's rules; empty if none.
        """

    def run_timers(self) -> float | None:
        """Remove deferred objects; return seconds until the next call, or None once nothing is left."""

    def clear(self, *, kube_proxy: bool) -> bool:
        """Remove everything except the objects that mark ownership; True if it is gone.

        With `kube_proxy`, objects that only kube-proxy makes are removed too.
        """

    def dissolve(self) -> bool:
        """Remove the rest, to which rules of other modes may refer until `clear`; True if it is gone."""


class RequiredSysctl(msgspec.Struct, frozen=True):
    """A kernel parameter that a mode sets: its name below /proc/sys, its value and its effect.

    `essential`: the mode does not start where it cannot be set.
    """

    name: str
    value: str
    effect: str
    essential: bool = False


class Preview(msgspec.Struct, frozen=True):
    """The changes that a first sync would make.

    `rules` are chains and rules by family, `others` all other objects. `used` is the iptables variant of each
    family's rules. `failed` maps refused services to reasons; `problems` lists the defects of objects.
    """

    rules: Mapping[Family, tuple[Change, ...]]
    others: tuple[Change, ...] = ()
    used: Mapping[Family, Variant] = {}
    failed: Mapping[str, str] = {}
    problems: tuple[str, ...] = ()


class PreviewError(Exception):
    """The changes of a sync cannot be determined; the message gives the reason."""


class DumpPreview(Protocol):
    """Compares with a saved dump of a family's rules instead of with the kernel."""

    def __call__(
        self,
        config: ProxyConfig,
        inputs: Sequence[ServiceInput],
        facts: NodeFacts,
        dump: bytes,
        family: Family,
    ) -> Preview:
        """Return the changes that a first sync would make. Raises ValueError for text that is no dump."""


def exact_shares(_port: PortPlan, endpoints: tuple[EndpointPlan, ...], _ports: int) -> tuple[float, ...]:
    """The share of each endpoint where a mode realizes weights exactly; see plan.outcomes.Shares."""
    weights = effective(endpoints)
    total = sum(weights)
    return tuple(weight / total for weight in weights)


class ExplainError(Exception):
    """What the kernel or a dump holds cannot be read; the message gives the reason."""


class KernelRules(msgspec.Struct, frozen=True):
    """The rules that packets of a family pass: what `explain` walks.

    `chains` are those of every hook. `covered` are the nftables tables (`ip nat`, ...) whose rules are among
    these in another form. `unread` says what could not be read. Chains may be read when a packet enters them;
    `is_current`: whether they are still those that were there when this was made.
    """

    chains: tuple[HookChain, ...] = ()
    covered: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()
    is_current: Callable[[], bool] = lambda: True


class RuleReader(Protocol):
    """Reads the rules of one kind, such as nftables, whatever program wrote them."""

    @property
    def dump(self) -> str:
        """What `load_dump` takes, in words."""

    def read_kernel(self, family: Family, shared: SharedRules) -> KernelRules:
        """Read what the kernel holds; `shared` are rules that readers have in common. Raises ExplainError."""

    def load_dump(self, text: str, family: Family) -> KernelRules | None:
        """The rules in a dump of this kind; None if it is another kind. Raises ExplainError."""


class ModeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One proxy mode, as code outside its package sees it.

    `written` names the objects of its first sync, `taken_away` those that are removed once another mode works
    (for the plan of a mode switch); `taken_away_beside` is the same where the other mode has the same
    nftables table. `metrics` are the names of series that this mode has and not every mode.

    `make` probes the kernel and returns the running mode; it raises ModeUnavailable. `set_sysctls` sets the
    parameters that need more than CAP_NET_ADMIN (--init-only), and raises ModeUnavailable; `sysctls` lists
    the parameters that a start sets; its argument says whether node ports answer on 127.0.0.1.

    `render` returns a family's objects as text. `preview` returns the changes of a first sync; it raises
    PreviewError, or OSError, ValueError or an error of a kernel interface if something cannot be read.
    `preview_dump` does the same for a saved dump, in modes whose rules can be saved as one.

    `leftovers` is called before the first sync of the mode that takes over, with its settings; a cleanup
    passes None. `preview_leftovers` adds to another mode's preview the objects of this mode that would be
    removed.

    `rule_reader` makes the reader of the rules that the mode writes, for `explain`; `explain_facts` are a
    family's intended differences from other modes.

    `features` returns the matches and targets that the mode's iptables rules use in a family and layout.
    `check` probes everything else that the mode needs; it takes each family's iptables variant, if rules can
    be written.
    """

    traits: ModeTraits
    written: str
    taken_away: str
    taken_away_beside: str | None = None
    metrics: frozenset[str]
    make: Callable[[ProxyConfig, Runner], Mode]
    set_sysctls: Callable[[ProxyConfig], None]
    sysctls: Callable[[ProxyConfig, bool], Iterable[RequiredSysctl]]
    render: Callable[[ProxyConfig, Family, FamilyFacts, Collection[ServicePlan]], str]
    preview: Callable[[ProxyConfig, Sequence[ServiceInput], NodeFacts], Preview]
    leftovers: Callable[[ProxyConfig | None, Runner], Leftovers]
    preview_leftovers: Callable[[ProxyConfig, Preview], Preview]
    check: Callable[[ProxyConfig, Mapping[Family, Variant]], Iterator[Finding]]
    features: Callable[[Family, str], tuple[Feature, ...]] = lambda _family, _layout: ()
    preview_dump: DumpPreview | None = None
    rule_reader: Callable[[ProxyConfig, Runner], RuleReader] | None = None
    explain_facts: Callable[[ProxyConfig, Family, FamilyFacts], ModeFacts] = lambda *_: ModeFacts(
        shares=exact_shares
    )

    @property
    def name(self) -> str:
        """The value of --proxy-mode."""
        return self.traits.name


class ModeRegistry:
    """All modes, and the runner of the programs that a running mode starts.

    `watches` are those of the rulesets, which modes share with whatever else writes to these.
    """

    def __init__(
        self,
        specs: Collection[ModeSpec],
        runner: Runner | None = None,
        more: Callable[[], tuple[Leftovers, ...]] = tuple,
    ) -> None:
        """`more` returns leftovers that are of no mode."""
        self.watches: RulesetWatches = {}
        self._specs = {spec.name: spec for spec in specs}
        self._runner = runner or Runner()
        self._more = more

    def spec(self, config: ProxyConfig) -> ModeSpec:
        """The configured mode. Raises KeyError if there is no such mode."""
        return self._specs[config.proxy_mode]

    def others(self, config: ProxyConfig) -> tuple[ModeSpec, ...]:
        """All modes except the configured one, in reverse order."""
        return tuple(spec for spec in reversed(self._specs.values()) if spec.name != config.proxy_mode)

    def with_dumps(self) -> tuple[str, ...]:
        """The modes whose rules can be compared with a saved dump."""
        return tuple(spec.name for spec in self._specs.values() if spec.preview_dump is not None)

    def make(self, config: ProxyConfig) -> Mode:
        """Make the configured mode and warn of kube-proxy's tables. Raises ModeUnavailable."""
        warn_of_kube_proxy_tables()
        mode = self.spec(config).make(config, self._runner)
        if isinstance(mode, SharesWrites):
            mode.share_writes(self.watches)
        return mode

    def rule_readers(self, config: ProxyConfig) -> tuple[RuleReader, ...]:
        """The readers of the rules of every mode: packets pass the rules of all."""
        return tuple(
            spec.rule_reader(config, self._runner)
            for spec in self._specs.values()
            if spec.rule_reader is not None
        )

    def foreign_metrics(self, mode: str) -> frozenset[str]:
        """The names of series that other modes have and `mode` has not."""
        of_some = frozenset[str]().union(*(spec.metrics for spec in self._specs.values()))
        return of_some - self._specs[mode].metrics

    def leftovers(self, config: ProxyConfig) -> tuple[Leftovers, ...]:
        """The leftovers of every other mode, for the configured mode, and those of no mode."""
        return (*(spec.leftovers(config, self._runner) for spec in self.others(config)), *self._more())
