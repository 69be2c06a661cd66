"""Which optional kinds of object a configuration needs."""

from kproxy.config.model import ProxyConfig
from kproxy.node.facts import wants_service_cidrs
from kproxy.state.kinds import KINDS, Kind


def wanted_kinds(config: ProxyConfig) -> frozenset[Kind]:
    """The optional kinds that this configuration uses. A reload may change them."""
    return frozenset({Kind.SERVICE_CIDR} if wants_service_cidrs(config) else ())


def needed_kinds(config: ProxyConfig) -> tuple[Kind, ...]:
    """The required kinds and the wanted ones, in the order of the registry."""
    wanted = wanted_kinds(config)
    return tuple(kind for kind in KINDS if kind.required or kind in wanted)
