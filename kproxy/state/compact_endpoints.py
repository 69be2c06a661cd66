"""The endpoints of a slice in a few objects, instead of several for each: half a million fit in 20 MB.

A node keeps every endpoint of the cluster, and endpoints differ in their address and pod only: nodes, zones,
conditions and hints are those of thousands of others. So a slice keeps the addresses and the pods as one text
each, and for the rest refers to endpoints without them, which all slices share.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import overload

from kproxy.state.wire import Endpoint, EndpointConditions, EndpointHints, Endpoints, TargetRef

_END = "\n"
_MOST_HINTS = 16
"""Most hints of an endpoint that are kept in the cache; the API allows 8 zones and 8 nodes."""

Columns = Iterator[tuple[str, Endpoint, str]]
"""Of each endpoint: its first address or "", an endpoint that has all but address and pod, its pod or ""."""


class CompactEndpoints(Sequence[Endpoint]):
    """Endpoints with at most one address each. An Endpoint is made when it is read."""

    __slots__ = ("_addresses", "_common", "_pods")

    def __init__(self, addresses: str, common: tuple[Endpoint, ...], pods: str) -> None:
        """`addresses` and `pods` are texts with a line for each endpoint; `pods` may be "" instead."""
        self._addresses = addresses
        self._common = common
        self._pods = pods

    def columns(self) -> Columns:
        """See Columns; equal parts of endpoints are the same object."""
        pods: Iterable[str] = self._pods.split(_END) if self._pods else ("",) * len(self._common)
        return zip(self._addresses.split(_END), self._common, pods, strict=True)

    def mentions(self, text: str) -> bool:
        """Whether a text is part of an address or the name of a pod: a quick test before `columns`."""
        return text in self._addresses or text in self._pods

    def __len__(self) -> int:
        return len(self._common)

    def __iter__(self) -> Iterator[Endpoint]:
        return (_whole(*each) for each in self.columns())

    @overload
    def __getitem__(self, index: int) -> Endpoint: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Endpoint]: ...

    def __getitem__(self, index: int | slice) -> Endpoint | Sequence[Endpoint]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, CompactEndpoints):
            return (
                self._addresses == other._addresses
                and self._common == other._common
                and self._pods == other._pods
            )
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def columns_of(endpoints: Endpoints) -> Columns:
    """The columns of a slice's endpoints, compact or not."""
    if isinstance(endpoints, CompactEndpoints):
        return endpoints.columns()
    return ((each.addresses[0] if each.addresses else "", each, _pod(each)) for each in endpoints)


def mentions(endpoints: Endpoints, text: str) -> bool:
    """False if these endpoints surely have neither this address nor a pod of this name."""
    return not isinstance(endpoints, CompactEndpoints) or endpoints.mentions(text)


def compact(endpoints: tuple[Endpoint, ...]) -> Endpoints:
    """Return equal endpoints that take less memory, without all but the first address of each.

    Since Kubernetes 1.32 consumers of the API are required to ignore the others. Endpoints with text that no
    API server accepts are returned as they are.
    """
    addresses = [each.addresses[0] if each.addresses else "" for each in endpoints]
    pods = [_pod(each) for each in endpoints]
    common = tuple(
        [
            _common(
                each.conditions,
                each.node_name,
                each.zone,
                each.hints,
                each.target_ref is not None,
                None if each.target_ref is None else each.target_ref.kind,
            )
            if each.hints is None or _is_short(each.hints)
            else _stripped(each)
            for each in endpoints
        ]
    )
    last = len(endpoints) - 1
    lines, names = _END.join(addresses), _END.join(pods)
    if last < 0 or lines.count(_END) != last or names.count(_END) != last:
        return endpoints
    return CompactEndpoints(lines, common, names if any(pods) else "")


def _pod(endpoint: Endpoint) -> str:
    """The name of what an endpoint refers to, or ""."""
    return "" if endpoint.target_ref is None else endpoint.target_ref.name or ""


def _is_short(hints: EndpointHints) -> bool:
    return len(hints.for_zones or ()) + len(hints.for_nodes or ()) <= _MOST_HINTS


def _stripped(each: Endpoint) -> Endpoint:
    target = each.target_ref
    return Endpoint(
        None,
        each.conditions,
        each.node_name,
        each.zone,
        each.hints,
        None if target is None else TargetRef(target.kind),
    )


@lru_cache(maxsize=8192)
def _common(
    conditions: EndpointConditions | None,
    node: str | None,
    zone: str | None,
    hints: EndpointHints | None,
    has_target: bool,
    kind: str | None,
) -> Endpoint:
    return Endpoint(
        None,
        _conditions(conditions),
        None if node is None else sys.intern(node),
        None if zone is None else sys.intern(zone),
        hints,
        TargetRef(None if kind is None else sys.intern(kind)) if has_target else None,
    )


@lru_cache(maxsize=64)
def _conditions(conditions: EndpointConditions | None) -> EndpointConditions | None:
    return conditions


def _whole(address: str, common: Endpoint, pod: str) -> Endpoint:
    """An endpoint from its columns."""
    target = common.target_ref
    return Endpoint(
        (address,) if address else None,
        common.conditions,
        common.node_name,
        common.zone,
        common.hints,
        TargetRef(target.kind, pod) if target is not None and pod else target,
    )
