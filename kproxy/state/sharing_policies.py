"""Share equal values of decoded Pods, Namespaces and NetworkPolicies in memory.

The pods of one workload have the same labels and containers, and most label pairs occur in many pods. Of the
parts of a pod only its name, uid, addresses and time are its own.
"""

import sys
from functools import lru_cache

import msgspec
from msgspec.structs import force_setattr

from kproxy.state.policy_wire import Container, Labels, Namespace, NetworkPolicy, Pod
from kproxy.state.sharing import intern

_MOST_SHARED = 2048
"""Sets of labels, and tuples of containers, that are shared at once; the least recently seen are dropped."""

_LONGEST_SHARED = 20
"""Most labels of an object, and most ports and containers of a pod, that are shared: the caches would keep
longer ones of a tenant after its pods are gone."""

_NO_LABELS: Labels = {}


def share_pod(decoded: Pod) -> None:
    """Replace parts of a newly decoded Pod by equal shared ones; nothing else may refer to it yet."""
    metadata, spec, status = decoded.metadata, decoded.spec, decoded.status
    intern(metadata, "namespace")
    force_setattr(metadata, "labels", _shared(metadata.labels))
    if spec is not None:
        intern(spec, "node_name")
        for name in ("containers", "init_containers"):
            found = getattr(spec, name)
            if found is not None and sum(1 + len(each.ports or ()) for each in found) <= _LONGEST_SHARED:
                force_setattr(spec, name, _containers(found))
    if status is not None:
        intern(status, "phase")
        if status.pod_ips and status.pod_ip == status.pod_ips[0].ip:
            force_setattr(status, "pod_ip", status.pod_ips[0].ip)


def share_namespace(decoded: Namespace) -> None:
    """The same for a Namespace."""
    intern(decoded.metadata, "name")
    force_setattr(decoded.metadata, "labels", _shared(decoded.metadata.labels))


def own_spec(decoded: NetworkPolicy) -> None:
    """Copy the spec out of the answer that it was read from, which would stay in memory as a whole.

    The copy has no blanks, so that equal specs of differently written files are equal.
    """
    intern(decoded.metadata, "namespace")
    if spec := bytes(decoded.spec):
        force_setattr(decoded, "spec", msgspec.Raw(msgspec.json.format(spec, indent=-1)))


def _shared(labels: Labels) -> Labels:
    if not labels:
        return _NO_LABELS
    pairs = tuple(labels.items())
    return _labels(pairs) if len(pairs) <= _LONGEST_SHARED else labels


@lru_cache(maxsize=_MOST_SHARED)
def _labels(pairs: tuple[tuple[str, str], ...]) -> Labels:
    return {sys.intern(key): sys.intern(value) for key, value in pairs}


@lru_cache(maxsize=_MOST_SHARED)
def _containers(containers: tuple[Container, ...]) -> tuple[Container, ...]:
    return containers
