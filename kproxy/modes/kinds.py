"""Which optional kinds of object a configuration needs."""

from kproxy.config.model import ProxyConfig
from kproxy.node.facts import wants_service_cidrs
from kproxy.state.kinds import KINDS, POLICY_KINDS, Kind


def wanted_kinds(config: ProxyConfig) -> frozenset[Kind]:
    """The optional kinds that this configuration uses. A reload may change them."""
    ranges = (Kind.SERVICE_CIDR,) if wants_service_cidrs(config) else ()
    return frozenset((*ranges, *(POLICY_KINDS if config.network_policy else ())))


def kinds_of_files(config: ProxyConfig) -> tuple[Kind, ...]:
    """The kinds to read from manifests: all but those of NetworkPolicies where these are not enforced."""
    wanted = wanted_kinds(config)
    return tuple(kind for kind in KINDS if not kind.for_policies or kind in wanted)


def needed_kinds(config: ProxyConfig) -> tuple[Kind, ...]:
    """The required kinds and the wanted ones, in the order of the registry."""
    wanted = wanted_kinds(config)
    return tuple(kind for kind in KINDS if kind.required or kind in wanted)
