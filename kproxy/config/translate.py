"""Resolve both documents into one ProxyConfig; find settings without effect."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kproxy.addresses import Family
from kproxy.config.codec import flatten
from kproxy.config.declarations import declarations, ignored_paths
from kproxy.config.documents import Settings
from kproxy.config.model import ProxyConfig, cidrs_by_family
from kproxy.config.modes import traits_of
from kproxy.config.schema import KubeProxyConfiguration
from kproxy.config.schema_modes import Iptables, Ipvs, Nftables
from kproxy.config.settings import Section
from kproxy.config.values import PRIMARY
from kproxy.kernel.xtables.types import Variant

KNOWN_GATES = frozenset(
    {
        "AllAlpha",
        "AllBeta",
        "ComponentFlagz",
        "ComponentStatusz",
        "ContextualLogging",
        "KubeProxyDrainingTerminatingNodes",
        "KubeProxyIPVS",
        "LoggingAlphaOptions",
        "LoggingBetaOptions",
        "MultiCIDRServiceAllocator",
        "NFTablesProxyMode",
        "PreferSameTrafficDistribution",
        "ServiceTrafficDistribution",
        "TopologyAwareHints",
        "WatchListClient",
    }
)
"""Feature gates of kube-proxy, present or past, that have no effect here."""

EXTERNAL_IPS = "AllowServiceExternalIPs"
"""The gate that disables spec.externalIPs (KEP-5707); on by default in 1.36."""


def proxy_config(
    settings: Settings,
    *,
    host: str,
    master: str = "",
    once: bool = False,
    once_timeout: float = 0.0,
    replay: str = "",
    replay_until: int = 0,
) -> ProxyConfig:
    """Resolve the settings of this process. `host` is the host name, the default of the node's name."""
    kube, own = settings.kube, settings.own
    traits = traits_of(settings.mode)
    section: Iptables | Ipvs | Nftables = getattr(kube, traits.section)
    masquerading: Iptables | Nftables = getattr(kube, traits.masquerade_section)
    from_cluster = not own.manifests
    kubeconfig = kube.client_connection.kubeconfig
    passed_on = _by_attribute(kube) | _by_attribute(own)
    special: dict[str, Any] = {
        "node_name": (kube.hostname_override.strip() or host).strip().lower(),
        "proxy_mode": settings.mode,
        "kubeconfig": Path(kubeconfig) if kubeconfig and from_cluster else None,
        "master": master,
        "manifests": Path(own.manifests) if own.manifests else None,
        "cluster_cidrs": _parts(kube.cluster_cidr),
        "masquerade_all": masquerading.masquerade_all,
        "masquerade_bit": masquerading.masquerade_bit,
        "localhost_node_ports": kube.iptables.localhost_node_ports,
        "sync_period": section.sync_period,
        "min_sync_period": section.min_sync_period,
        "node_port_addresses": kube.node_port_addresses,
        "external_ips": kube.feature_gates.get(EXTERNAL_IPS, True),
        "external_ip_cidrs": own.external_ips.allowed_cidrs,
        "service_cidrs": own.nftables.service_cidrs,
        "iptables_variant": Variant(own.iptables.variant) if own.iptables.variant else None,
        "conntrack": kube.conntrack,
        "verbosity": kube.logging.verbosity,
        "once": once,
        "once_timeout": once_timeout,
        "replay": Path(replay) if replay else None,
        "replay_until": replay_until,
    }
    return ProxyConfig(**(passed_on | special))


def _by_attribute(document: Section) -> dict[str, Any]:
    """Return the values of settings whose flag has the name of a field of ProxyConfig."""
    values = dict(flatten(document))
    return {
        each.setting.attribute: values[each.path]
        for each in declarations(type(document))
        if each.setting.attribute in ProxyConfig.__struct_fields__
    }


def without_effect(kube: KubeProxyConfiguration) -> list[str]:
    """Return ignored paths whose value is not the default."""
    gates = [f"featureGates.{name}" for name in kube.feature_gates if name in KNOWN_GATES]
    return sorted([*_changed(kube), *gates])


def unknown_gates(kube: KubeProxyConfiguration) -> list[str]:
    """Return feature gates that kube-proxy does not know."""
    return sorted(kube.feature_gates.keys() - KNOWN_GATES - {EXTERNAL_IPS})


def unrestricted(kube: KubeProxyConfiguration) -> list[str]:
    """Families of `clusterCIDR` whose node ports answer at every address despite `nodePortAddresses`.

    A list of one family does not restrict the other (checkBadConfig of kube-proxy warns too).
    """
    ranges = kube.node_port_addresses
    if not ranges or PRIMARY in ranges:
        return []
    restricted = cidrs_by_family(ranges)
    used = cidrs_by_family(_parts(kube.cluster_cidr))
    return [family.value for family in Family if used[family] and not restricted[family]]


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def has_no_effect(path: str) -> bool:
    """Whether a path of KubeProxyConfiguration is accepted and ignored.

    Such settings do not apply: kproxy has three long watches and no other requests, reads JSON, hides no
    metrics, writes every log line at once in one format, and needs Linux.
    """
    return path in ignored_paths(KubeProxyConfiguration)


def _changed(kube: KubeProxyConfiguration) -> Iterator[str]:
    defaults = dict(flatten(KubeProxyConfiguration()))
    for path, value in flatten(kube):
        if has_no_effect(path) and value != defaults[path]:
            yield path
