"""Give planning the addresses of this node's pods before the API has them.

The Pod object arrives when the pod is scheduled; its address comes into the API seconds after its containers
began. The CNI result names the pod and its address before they begin (kproxy/sources/cni_cache.py), so a pod
is judged by its policies from its first packet.
"""

from collections.abc import Callable, Mapping

import msgspec

from kproxy.addresses import parse_ip
from kproxy.sources.cni_cache import CniResult, newest
from kproxy.state.policy_changes import PolicyChanges
from kproxy.state.policy_wire import Pod, PodIP, PodStatus

_NONE: Mapping[str, CniResult] = {}


class EarlyAddresses:
    """Adds the addresses of CNI results to changed pods. Used by one thread.

    `results` returns the results by file: the same mapping while nothing has changed.
    """

    def __init__(self, node: str, results: Callable[[], Mapping[str, CniResult]] = lambda: _NONE) -> None:
        self._node = node
        self._results = results
        self._seen: Mapping[str, CniResult] | None = None
        self._newest: Mapping[tuple[str, str], CniResult] = {}
        self._by_name: Mapping[str, CniResult] = {}
        self._ranged: Mapping[str, CniResult] | None = None
        self._ranges: tuple[str, ...] = ()
        self._pods: dict[str, Pod] = {}
        """This node's pods that have addresses of their own, as the API has them."""
        self._given: dict[str, Pod] = {}
        """Those of them with added addresses, as they were returned last."""

    @property
    def news(self) -> bool:
        """Whether there are results that `amend` has not seen."""
        return self._results() is not self._seen

    @property
    def ranges(self) -> tuple[str, ...]:
        """The ranges from which this node alone gives addresses to its pods, as results name them."""
        results = self._results()
        if results is not self._ranged:
            self._ranged = results
            self._ranges = tuple(sorted({cidr for result in results.values() for cidr in result.ranges}))
        return self._ranges

    def amend(self, changes: PolicyChanges) -> PolicyChanges:
        """The changes with the added addresses, and with the pods for which a result came or went.

        An address of a result is added to those of the API and does not replace them: while both differ, the
        pod is judged at each of them.
        """
        results = self._results()
        look_again = results is not self._seen
        if look_again:
            self._seen, self._newest = results, newest(results)
            self._by_name = {each.pod: each for each in sorted(self._newest.values(), key=_age)}
        elif not changes.pods:
            return changes
        pods = dict(changes.pods)
        for key, pod in changes.pods.items():
            if pod is None or pod.node != self._node or pod.host_network or pod.finished:
                self._pods.pop(key, None)
                self._given.pop(key, None)
            else:
                self._pods[key] = pod
        for key in self._pods if look_again else [key for key in changes.pods if key in self._pods]:
            pod = self._pods[key]
            amended = self._with_addresses(key, pod)
            if key in pods or amended != self._given.get(key, pod):
                pods[key] = amended
            if amended is pod:
                self._given.pop(key, None)
            else:
                self._given[key] = amended
        return msgspec.structs.replace(changes, pods=pods) if pods else changes

    def _with_addresses(self, key: str, pod: Pod) -> Pod:
        uid = pod.metadata.uid
        if uid:
            result = self._newest.get((key, uid)) or self._newest.get((key, ""))
        else:  # from a manifest
            result = self._by_name.get(key)
        if result is None:
            return pod
        known = set()
        for address in pod.addresses:
            try:
                known.add(parse_ip(address)[1])
            except ValueError:
                continue
        added = [address for address in result.addresses if address not in known]
        if not added:
            return pod
        status = pod.status or PodStatus()
        addresses = tuple(PodIP(ip=address) for address in (*pod.addresses, *added))
        return msgspec.structs.replace(pod, status=msgspec.structs.replace(status, pod_ips=addresses))


def _age(result: CniResult) -> int:
    return result.at
