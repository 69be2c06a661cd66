"""Weights of endpoints, from one annotation of the Service: canaries, unequal hardware, draining by hand.

`kproxy.io/weights` maps selectors to weights, as JSON or YAML; the first selector that matches applies:

    {"pod:web-canary-*": 1, "node:big-*": 40, "zone:eu-1a": 20, "*": 10}
"""

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import Protocol

import msgspec
import yaml

DEFAULT_WEIGHT = 1
"""Weight of an endpoint that no selector matches; kube-proxy uses the same in IPVS mode."""

WEIGHT_MAX = 65535
"""Upper bound of a weight (ipvsadm has the same)."""

TEXT_MAX = 65536
"""Greatest length of the annotation, in characters."""

_KINDS = ("pod", "node", "zone")


class WeightsError(ValueError):
    """The annotation is invalid; the message says why."""


class Weighted(Protocol):
    """An object with a weight."""

    @property
    def weight(self) -> int:
        """0 to WEIGHT_MAX."""


class Selector(msgspec.Struct, frozen=True, gc=False):
    """One entry of the annotation: `kind` is pod, node, zone, or "" for every endpoint."""

    kind: str
    matches: Callable[[str], object]
    weight: int


Weights = tuple[Selector, ...]


def effective(endpoints: Sequence[Weighted]) -> tuple[int, ...]:
    """Return the weights of endpoints that share traffic.

    An endpoint of weight 0 gets no new connections; if all weights are 0, all endpoints get equal shares.
    """
    weights = tuple(endpoint.weight for endpoint in endpoints)
    return weights if any(weights) else (DEFAULT_WEIGHT,) * len(weights)


def weight_of(weights: Weights, *, pod: str, node: str, zone: str) -> int:
    """Return the weight of an endpoint; an unknown pod, node or zone is ""."""
    names = {"pod": pod, "node": node, "zone": zone}
    for selector in weights:
        if not selector.kind or ((name := names[selector.kind]) and selector.matches(name)):
            return selector.weight
    return DEFAULT_WEIGHT


@lru_cache(maxsize=1024)
def parse_weights(text: str) -> Weights:
    """Parse the annotation. Raises WeightsError."""
    if len(text) > TEXT_MAX:
        raise WeightsError(f"longer than {TEXT_MAX} characters")
    return tuple(_selector(name, weight) for name, weight in _pairs(text))


def _selector(name: object, weight: object) -> Selector:
    if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= WEIGHT_MAX:
        raise WeightsError(f"the weight of {name!r} is {weight!r}, not an integer of 0 to {WEIGHT_MAX}")
    if name == "*":
        return Selector("", bool, weight)
    kind, colon, glob = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not colon or kind not in _KINDS or not glob:
        raise WeightsError(f"{name!r} is not pod:GLOB, node:GLOB, zone:GLOB or *")
    return Selector(kind, re.compile(translate(glob)).match, weight)


def _pairs(text: str) -> Iterable[tuple[object, object]]:
    """The mapping's pairs in the order of the document."""
    # JSON is YAML, too: one parser gives one order and one treatment of duplicate names.
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise WeightsError("not a mapping of selectors to weights")
        pairs: dict[object, object] = {}
        for key, value in root.value:
            if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
                raise WeightsError("not a mapping of selectors to weights")
            if key.value in pairs:
                raise WeightsError(f"{key.value!r} appears twice")
            pairs[key.value] = _plain(value)
    except yaml.YAMLError as error:
        raise WeightsError(f"neither JSON nor YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError("neither JSON nor YAML") from error
    return pairs.items()


def _plain(node: yaml.ScalarNode) -> object:
    """An integer for a plain decimal number; otherwise the text, which the error shows."""
    if node.tag == "tag:yaml.org,2002:int" and re.fullmatch(r"\d{1,9}", node.value):
        return int(node.value)
    return node.value
