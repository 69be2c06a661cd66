"""`kproxy check`: run the probes and report findings, in the order in which an operator fixes them."""

from collections.abc import Collection, Iterator, Sequence

from kproxy.addresses import Family
from kproxy.config import loopback
from kproxy.config.model import ProxyConfig, validate
from kproxy.inspect.preflight import evaluate, inventory, pod_bridges, policies
from kproxy.inspect.preflight.cluster import check_cluster
from kproxy.inspect.preflight.foreign_proxies import foreign_proxy_findings
from kproxy.inspect.preflight.probes import ProbeResults, run_probes
from kproxy.inspect.sysctls import current_sysctls
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.kernel.xtables import extensions, python_iptables
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import XtablesTools
from kproxy.kernel.xtables.types import Variant, XtablesUnavailable
from kproxy.modes.base import ModeRegistry, ModeSpec
from kproxy.modes.findings import Finding, Report, warning


def check_node(config: ProxyConfig, modes: ModeRegistry) -> Report:
    """Check this node for the mode and settings of `config`. Raises ConfigError."""
    validate(config)
    return Report((*check_settings(config), *_check_kernel(config, modes), *_check_source(config)))


def check_settings(config: ProxyConfig) -> Iterator[Finding]:
    """Warn of settings that are valid but not possible in this mode."""
    if ranges := loopback.unserved(config):
        reason = f"{', '.join(ranges)}: {loopback.why_unserved(config)}"
        yield warning("--nodeport-addresses", reason, "leave loopback addresses out, or use iptables mode")


def _check_source(config: ProxyConfig) -> Iterator[Finding]:
    if config.replay is not None:
        return
    if config.manifests is None:
        yield from check_cluster(config)
    elif not config.manifests.is_dir():
        reason = f"--manifests {config.manifests} is not a directory"
        yield warning("manifests", reason, "make it: kproxy waits for it and serves nothing until then")


def _check_kernel(config: ProxyConfig, modes: ModeRegistry) -> Iterator[Finding]:
    tools, missing = _find_programs(config)
    chosen = next((found.variant for found in tools.values()), None)
    permissions = tuple(evaluate.capability_findings(inventory.capabilities(), chosen))
    yield from permissions
    if not Report(permissions).passed:
        yield from evaluate.program_findings(_described(tools), missing)
        return
    spec = modes.spec(config)
    families: Collection[Family] = tuple(Family)
    variants = {family: found.variant for family, found in tools.items()}
    if spec.traits.writes_iptables:
        results = _run_probes(spec, config, tools)
        usable = {family: found for family, found in tools.items() if family not in results.unusable}
        families = tuple(usable)
        variants = {family: found.variant for family, found in usable.items()}
        yield from evaluate.program_findings(_described(usable), missing | dict(results.unusable))
        for family, tested in results.rules.items():
            yield from evaluate.feature_findings(family, tested)
        yield from evaluate.conntrack_findings(results.conntrack)
        for family, tested in results.rules.items():
            yield from _check_extensions(family, [feature.name for feature, _ in tested])
    own = tuple(spec.check(config, variants))
    yield from own
    sysctls = current_sysctls(config, families, spec, localhost=config.localhost_node_ports)
    # The findings already name missing kernel features; their parameters do not exist without them.
    set_by_mode = {each.name for each in spec.sysctls(config, config.localhost_node_ports)}
    lacking = () if Report(own).passed else set_by_mode
    yield from evaluate.sysctl_findings(
        [each for each in sysctls if each.now is not None or each.name not in lacking]
    )
    yield from _check_others(config, chosen)


def _check_extensions(family: Family, names: Sequence[str]) -> Iterator[Finding]:
    """Query libxtables, if python-iptables is installed."""
    if not python_iptables.is_installed():
        return
    try:
        yield from evaluate.extension_findings(family, extensions.revisions(family, names))
    except python_iptables.PythonIptablesError as error:
        remedy = "what was results above counts; see that python-iptables fits the node's libxtables"
        yield warning(f"extensions {family}", f"libxtables cannot be asked: {error}", remedy)


def _check_others(config: ProxyConfig, chosen: Variant | None) -> Iterator[Finding]:
    legacy, unreadable = inventory.legacy_counts()
    nft = inventory.nft_counts()
    yield from evaluate.variant_findings(chosen, legacy, nft, unreadable)
    others = inventory.others((legacy, nft))
    yield from foreign_proxy_findings(others)
    if config.network_policy:
        yield from policies.policy_findings(NetlinkNft())
        yield from policies.enforcer_findings(others)
        yield from policies.hazard_findings(config, others)
        yield from pod_bridges.bridge_findings()
        yield from pod_bridges.unknown_findings(config, NetlinkNft())


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


def _run_probes(spec: ModeSpec, config: ProxyConfig, tools: dict[Family, XtablesTools]) -> ProbeResults:
    variants: dict[Family, Variant] = {family: found.variant for family, found in tools.items()}
    try:
        return in_scratch_network(lambda: run_probes(spec, config, variants))
    except ScratchUnavailable:
        return run_probes(spec, config, variants)
