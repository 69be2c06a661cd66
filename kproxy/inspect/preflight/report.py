"""`kproxy check`: look, try, judge. The order of findings is that in which an operator would mend things."""

from collections.abc import Collection, Iterator, Sequence

from kproxy.addresses import Family
from kproxy.backends.ipvs.names import DEVICE
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.probe import probe
from kproxy.config import loopback
from kproxy.config.model import ProxyConfig, validate
from kproxy.inspect.preflight import evaluate, inventory
from kproxy.inspect.preflight.cluster import check_cluster
from kproxy.inspect.preflight.findings import Finding, Report, failed, ok, warning
from kproxy.inspect.preflight.foreign_proxies import judge_peers
from kproxy.inspect.preflight.probes import Trials, run_trials
from kproxy.inspect.sysctls import Sysctl, look
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.dummy import DummyDevice
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import NftError
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.kernel.xtables import extensions, python_iptables
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import XtablesTools
from kproxy.kernel.xtables.types import Variant, XtablesUnavailable
from kproxy.node import host_firewall
from kproxy.plan.schedulers import parse_scheduler

_IPVS_SYSCTLS = "net/ipv4/vs/"


def check_node(config: ProxyConfig) -> Report:
    """Check this node for the mode and settings of `config`. Raises ConfigError."""
    validate(config)
    return Report((*check_settings(config), *_check_kernel(config), *_check_source(config)))


def check_settings(config: ProxyConfig) -> Iterator[Finding]:
    """Settings that are valid, and that this mode cannot obey."""
    if ranges := loopback.unserved(config):
        told = f"{', '.join(ranges)}: {loopback.why_unserved(config)}"
        yield warning("--nodeport-addresses", told, "leave loopback addresses out, or use iptables mode")


def _check_source(config: ProxyConfig) -> Iterator[Finding]:
    if config.manifests is None:
        yield from check_cluster(config)
    elif not config.manifests.is_dir():
        told = f"--manifests {config.manifests} is not a directory"
        yield warning("manifests", told, "make it: kproxy waits for it and serves nothing until then")


def _check_kernel(config: ProxyConfig) -> Iterator[Finding]:
    tools, missing = _find_programs(config)
    chosen = next((found.variant for found in tools.values()), None)
    permissions = tuple(evaluate.judge_capabilities(inventory.capabilities(), chosen))
    yield from permissions
    if not Report(permissions).passed:
        yield from evaluate.judge_programs(_described(tools), missing)
        return
    if config.proxy_mode == "nftables":
        yield from _check_nftables()
        yield from evaluate.judge_sysctls(_sysctls(config, tuple(Family)))
        yield from _check_others(chosen)
        return
    trials = _try(config, tools)
    usable = {family: found for family, found in tools.items() if family not in trials.unusable}
    yield from evaluate.judge_programs(_described(usable), missing | dict(trials.unusable))
    for family, tried in trials.rules.items():
        yield from evaluate.judge_features(family, tried)
    yield from evaluate.judge_conntrack(trials.conntrack)
    for family, tried in trials.rules.items():
        yield from _check_extensions(family, [feature.name for feature, _ in tried])
    if config.proxy_mode == "ipvs":
        yield from evaluate.judge_sets(trials.sets)
        yield from evaluate.judge_ipvs(
            parse_scheduler(config.ipvs_scheduler).name, trials.ipvs, trials.schedulers
        )
        if trials.device is not None:
            yield from evaluate.judge_device(trials.device)
        yield from _check_device_name()
        if chosen is not None:
            yield from evaluate.judge_firewalls(
                tuple(host_firewall.shutting(chosen)),
                tuple(host_firewall.shadowing(chosen)),
                host_firewall.REMEDY,
            )
    sysctls = _sysctls(config, tuple(usable))
    # Without IPVS its sysctls do not exist either, which has been said.
    yield from evaluate.judge_sysctls(
        [each for each in sysctls if not (trials.ipvs and each.name.startswith(_IPVS_SYSCTLS))]
    )
    yield from _check_others(chosen)


def _sysctls(config: ProxyConfig, families: Collection[Family]) -> tuple[Sysctl, ...]:
    return look(config, families, localhost=config.localhost_node_ports)


def _check_nftables() -> Iterator[Finding]:
    """The whole layout is made and taken away in one transaction, in a table of its own."""
    nft = NetlinkNft()
    for family in Family:
        subject = f"nftables {family.value}"
        try:
            probe(nft, NftablesConfig(family))
        except NftError as error:
            remedy = "use another --proxy-mode, or a newer kernel"
            yield failed(subject, f"its maps and chains cannot be made: {error.message}", remedy)
        else:
            yield ok(subject, "all maps, sets and chains of the mode work")


def _check_extensions(family: Family, names: Sequence[str]) -> Iterator[Finding]:
    """Ask libxtables, where python-iptables is installed to do so."""
    if not python_iptables.is_installed():
        return
    try:
        yield from evaluate.judge_extensions(family, extensions.revisions(family, names))
    except python_iptables.PythonIptablesError as error:
        remedy = "what was tried above counts; see that python-iptables fits the node's libxtables"
        yield warning(f"extensions {family}", f"libxtables cannot be asked: {error}", remedy)


def _check_others(chosen: Variant | None) -> Iterator[Finding]:
    legacy, unreadable = inventory.legacy_counts()
    nft = inventory.nft_counts()
    yield from evaluate.judge_variants(chosen, legacy, nft, unreadable)
    yield from judge_peers(inventory.others((legacy, nft)))


def _find_programs(config: ProxyConfig) -> tuple[dict[Family, XtablesTools], dict[Family, str]]:
    found: dict[Family, XtablesTools] = {}
    missing: dict[Family, str] = {}
    for family in Family:
        try:
            found[family] = find_tools(family, config.iptables_variant, probe=False)
        except XtablesUnavailable as error:
            missing[family] = error.reason
    return found, missing


def _described(tools: dict[Family, XtablesTools]) -> dict[Family, str]:
    return {
        family: f"variant {found.variant}, version {'.'.join(map(str, found.version))}"
        for family, found in tools.items()
    }


def _try(config: ProxyConfig, tools: dict[Family, XtablesTools]) -> Trials:
    variants: dict[Family, Variant] = {family: found.variant for family, found in tools.items()}
    try:
        return in_scratch_network(lambda: run_trials(config, variants))
    except ScratchUnavailable:
        return run_trials(config, variants)


def _check_device_name() -> Iterator[Finding]:
    """The device itself is not made, but one of another type must not have its name."""
    try:
        kind = DummyDevice(DEVICE).kind()
    except DeviceError as error:
        yield warning(f"interface {DEVICE}", "cannot be looked at", str(error))
        return
    if kind not in (None, "dummy"):
        told = f"it exists and is of type {kind or 'unknown'}, not dummy"
        yield failed(f"interface {DEVICE}", told, f"remove it: ip link delete {DEVICE}")
