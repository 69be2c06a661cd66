"""Weights of endpoints, from one annotation of the Service: canaries, unequal hardware, draining by hand.

`kproxy.io/weights` maps selectors to weights, as JSON or YAML; the first selector that matches applies:

    {"pod:web-canary-*": 1, "node:big-*": 40, "zone:eu-1a": 20, "*": 10}

Any author of a Service writes this text, so its cost is bounded: by length, by the number of selectors, and
by the parser, which reads JSON in C, stops at the first value that is no weight, and takes only short YAML.
What is read belongs to its service (`WeightsCache`): text of one tenant never displaces that of another.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import translate
from typing import Protocol

import msgspec
import yaml

from kproxy.plan.limits import ANNOTATION_CHARACTERS, GLOB_CHARACTERS, SELECTORS, YAML_CHARACTERS
from kproxy.text import clean

DEFAULT_WEIGHT = 1
"""Weight of an endpoint that no selector matches; kube-proxy uses the same in IPVS mode."""

WEIGHT_MAX = 65535
"""Upper bound of a weight (ipvsadm has the same)."""

_KINDS = ("pod", "node", "zone")
_NOT_A_MAPPING = "not a mapping of selectors to weights"
_INTEGER = "tag:yaml.org,2002:int"
_DECIMAL = re.compile(r"0[0-7]{0,8}|[1-9][0-9]{0,8}")
_SHOWN = 120


class WeightsError(ValueError):
    """The annotation is invalid; the message says why."""


class WeightsBeyondLimitError(WeightsError):
    """The annotation is beyond a bound of limits.py."""


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


class WeightsCache:
    """The annotation of each service as last read, also one that is invalid. Not thread-safe."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[str, Weights | WeightsError]] = {}

    def read(self, key: str, text: str) -> Weights:
        """As `parse_weights`, for the annotation of the service `key`."""
        known = self._read.get(key)
        if known is None or known[0] != text:
            known = self._read[key] = (text, _outcome(text))
        if isinstance(known[1], WeightsError):
            raise type(known[1])(str(known[1]))
        return known[1]

    def forget(self, key: str) -> None:
        """Drop what is known of a service that has no such annotation any more."""
        self._read.pop(key, None)


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


def parse_weights(text: str) -> Weights:
    """Parse the annotation. Raises WeightsError."""
    if len(text) > ANNOTATION_CHARACTERS:
        raise WeightsBeyondLimitError(f"longer than {ANNOTATION_CHARACTERS} characters")
    found: dict[object, object] = {}
    for name, weight in _pairs(text):
        if name in found:
            raise WeightsError(f"{_show(name)} appears twice")
        found[name] = weight
        if len(found) > SELECTORS:
            raise WeightsBeyondLimitError(f"more than {SELECTORS} selectors")
    return tuple(_selector(name, weight) for name, weight in found.items())


def _outcome(text: str) -> Weights | WeightsError:
    try:
        return parse_weights(text)
    except WeightsError as error:
        return error.with_traceback(None)


def _selector(name: object, weight: object) -> Selector:
    if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= WEIGHT_MAX:
        raise WeightsError(
            f"the weight of {_show(name)} is {_show(weight)}, not an integer of 0 to {WEIGHT_MAX}"
        )
    if name == "*":
        return Selector("", bool, weight)
    kind, colon, glob = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not colon or kind not in _KINDS or not glob:
        raise WeightsError(f"{_show(name)} is not pod:GLOB, node:GLOB, zone:GLOB or *")
    if len(glob) > GLOB_CHARACTERS:
        raise WeightsBeyondLimitError(f"{_show(name)} is longer than {GLOB_CHARACTERS} characters")
    return Selector(kind, _matcher(glob), weight)


def _matcher(glob: str) -> Callable[[str], object]:
    """The match of fnmatchcase. Most globs need no regular expression, which `re` would keep in a cache."""
    if "?" in glob or "[" in glob:
        return re.compile(translate(glob)).match
    if "*" not in glob:
        return glob.__eq__
    first, *middle, last = glob.split("*")
    if not first and not last and not any(middle):
        return bool
    parts = tuple(filter(None, middle))
    return lambda name: _has_parts(name, first, parts, last)


def _has_parts(name: str, first: str, middle: tuple[str, ...], last: str) -> bool:
    """Whether a name has these parts in this order: at its start, in between, at its end."""
    end = len(name) - len(last)
    if len(first) > end or not name.startswith(first) or not name.endswith(last):
        return False
    at = len(first)
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


class _Object(list[tuple[str, object]]):
    """The pairs of a JSON object, also equal ones."""


def _pairs(text: str) -> Iterable[tuple[object, object]]:
    """The mapping's pairs in the order of the document."""
    try:
        root = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        return _yaml_pairs(text)
    if not isinstance(root, _Object) or any(isinstance(value, list) for _, value in root):
        raise WeightsError(_NOT_A_MAPPING)
    return root


def _yaml_pairs(text: str) -> Iterator[tuple[object, object]]:
    """The pairs of a YAML mapping of scalars. Events are read one by one, so that nesting costs nothing."""
    if len(text) > YAML_CHARACTERS:
        raise WeightsBeyondLimitError(f"neither JSON nor YAML of at most {YAML_CHARACTERS} characters")
    try:
        events = (
            event
            for event in yaml.parse(text, Loader=yaml.SafeLoader)
            if not isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent))
        )
        if not isinstance(next(events), yaml.MappingStartEvent):
            raise WeightsError(_NOT_A_MAPPING)
        for key in events:
            if isinstance(key, yaml.MappingEndEvent):
                break
            value = next(events)
            if not isinstance(key, yaml.ScalarEvent) or not isinstance(value, yaml.ScalarEvent):
                raise WeightsError(_NOT_A_MAPPING)
            yield key.value, _plain(value)
        if not isinstance(next(events), yaml.DocumentEndEvent) or not isinstance(
            next(events), yaml.StreamEndEvent
        ):
            raise WeightsError("neither JSON nor YAML: more than one document")
    except yaml.YAMLError as error:
        raise WeightsError(f"neither JSON nor YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError("neither JSON nor YAML") from error


def _plain(event: yaml.ScalarEvent) -> object:
    """An integer for a plain decimal number; otherwise the text, which the error shows."""
    is_number = (event.implicit[0] or event.tag == _INTEGER) and _DECIMAL.fullmatch(event.value)
    return int(event.value) if is_number else event.value


def _show(value: object) -> str:
    """A value of the annotation in quotes, cut where it is long."""
    return repr(clean(value, _SHOWN)) if isinstance(value, str) else clean(repr(value), _SHOWN)
