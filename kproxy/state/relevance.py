"""The objects that a service proxy ignores. An API server filters some of them by selectors; files do not."""

from kproxy.addresses import Family
from kproxy.state.policy_wire import Pod
from kproxy.state.wire import EndpointSlice, Service

_FAMILIES = frozenset(family.value for family in Family)
"""The address types that rules support; FQDN is not one."""


def of_service(service: Service) -> bool:
    """False for a Service of another proxy (label service.kubernetes.io/service-proxy-name)."""
    labels = service.metadata.labels
    return labels is None or labels.service_proxy_name is None


def of_slice(endpoint_slice: EndpointSlice) -> bool:
    """False for a slice of no Service, of a headless Service, or of names instead of addresses."""
    labels = endpoint_slice.metadata.labels
    headless = labels is not None and labels.headless is not None
    return (
        endpoint_slice.service_key is not None and not headless and endpoint_slice.address_type in _FAMILIES
    )


def of_pod(pod: Pod) -> bool:
    """False for a Pod that has no address of its own: a finished one, or one in its node's network."""
    return not pod.finished and not pod.host_network
