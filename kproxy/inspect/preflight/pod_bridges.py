"""Check whether policies can judge packets between pods of one bridge, and packets of pods that start."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from kproxy.addresses import Family
from kproxy.backends.policy.config import PolicyConfig, Unknown
from kproxy.backends.policy.probe import holding
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.policies import CNI_DIRECTORY, cni_networks
from kproxy.kernel import bridges
from kproxy.kernel.bridges import Bridge, BridgeError
from kproxy.kernel.nft.types import Nft, NftError
from kproxy.modes.findings import Finding, failed, ok, warning
from kproxy.node.pod_bridges import LOAD, MISSING
from kproxy.sources.cni_cache import DIRECTORY, CniCache

_SUBJECT = "bridges of pods"


def bridge_findings(
    directory: Path = CNI_DIRECTORY, results: Path = DIRECTORY, module: Path = bridges.BR_NETFILTER
) -> Iterator[Finding]:
    """Name the bridges that hold pods, and br_netfilter if it is missing.

    `directory` has the configuration of the CNI, `results` its results. Without either, any bridge may hold
    pods.
    """
    try:
        found = bridges.read()
        chosen = sorted(set(_holding_pods(found, directory, results)))
    except BridgeError as error:
        yield warning(_SUBJECT, str(error), "run it as root on the node")
        return
    if bridges.loaded(module) and not any(each.filtered is None for each in found.values()):
        if chosen:
            yield ok(_SUBJECT, f"{', '.join(chosen)}; br_netfilter is loaded, kproxy sets the flags")
            yield from _without_hairpin(directory)
    elif chosen:
        yield failed(_SUBJECT, f"{', '.join(chosen)}: {MISSING}", LOAD)
    elif found:
        names = ", ".join(sorted(each.name for each in found.values()))
        yield warning(_SUBJECT, f"if {names} has pods: {MISSING}", LOAD)


def _without_hairpin(directory: Path) -> Iterator[Finding]:
    """Name bridges of the CNI whose ports send no frame back to where it came from.

    Where the bridge's frames are filtered, the address of a service is translated before the bridge forwards.
    """
    for _, _, plugins in cni_networks(directory):
        for plugin in plugins:
            if plugin.get("type") == "bridge" and not plugin.get("hairpinMode"):
                name = plugin.get("bridge", "cni0")
                reason = f"{name}: hairpinMode is off, so a pod does not reach itself through its Service"
                yield warning(_SUBJECT, reason, "set hairpinMode in the configuration of the CNI")


def unknown_findings(config: ProxyConfig, nft: Nft) -> Iterator[Finding]:
    """Whether packets of pods that are not known yet can be held, if the settings say so."""
    if config.network_policy_unknown_pods != Unknown.HOLD:
        return
    for family in Family:
        subject = f"packets of unknown pods {family}"
        try:
            found = holding(nft, PolicyConfig(family))
        except NftError:  # the finding about the table says why
            continue
        if found is None:
            reason = "the kernel cannot hold them, so they are dropped until the pod is known"
            yield warning(subject, reason, "load it (modprobe nft_queue nfnetlink_queue)")
        else:
            yield ok(subject, "they are held until the pod is known")


def _holding_pods(found: Mapping[int, Bridge], directory: Path, results: Path) -> Iterator[str]:
    names = {bridge.name for bridge in found.values()}
    for _, _, plugins in cni_networks(directory):
        for plugin in plugins:
            if plugin.get("type") == "bridge":
                yield str(plugin.get("bridge", "cni0"))
    cache = CniCache(lambda: None, results)
    cache.refresh()
    for interface in sorted({name for result in cache.results.values() for name in result.interfaces}):
        if interface in names:
            yield interface
        elif (bridge := found.get(bridges.master(interface) or 0)) is not None:
            yield bridge.name
