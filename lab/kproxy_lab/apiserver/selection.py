"""Label and field selectors: parsed once per request, matched against stored entries.

Semantics are those of k8s.io/apimachinery's labels and fields packages: ``!=`` and ``notin`` also
match an object without the key; a field an object lacks compares as the empty string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kproxy_lab.apiserver.errors import ApiError
from kproxy_lab.apiserver.resources import Resource

_KEY = r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_SET = re.compile(rf"(?P<key>{_KEY})\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUALITY = re.compile(rf"(?P<key>{_KEY})\s*(?P<op>==|=|!=)\s*(?P<value>{_VALUE})")
_EXISTS = re.compile(rf"(?P<absent>!?)\s*(?P<key>{_KEY})")
_FIELD = re.compile(r"(?P<key>[A-Za-z][A-Za-z0-9.]*)(?P<op>==|=|!=)(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on a label: the value is (or is not) one of ``values``.

    ``values`` of None asks only whether the key is there.
    """

    key: str
    wanted: bool
    values: frozenset[str] | None = None

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels satisfy the condition."""
        if self.values is None:
            return (self.key in labels) is self.wanted
        return (labels.get(self.key) in self.values) is self.wanted


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    """One condition on a selectable field."""

    key: str
    wanted: bool
    value: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The selection of a list or a watch: a namespace (empty = all), labels and fields."""

    namespace: str = ""
    labels: tuple[Requirement, ...] = ()
    fields: tuple[FieldRequirement, ...] = ()

    @property
    def is_filtered(self) -> bool:
        """Return whether a selector was given (a namespace alone is not one)."""
        return bool(self.labels or self.fields)

    def matches(self, namespace: str, labels: Mapping[str, str], field_of: Callable[[str], str]) -> bool:
        """Return whether an object with these labels and fields is selected."""
        if self.namespace and namespace != self.namespace:
            return False
        return all(one.matches(labels) for one in self.labels) and all(
            (field_of(one.key) == one.value) is one.wanted for one in self.fields
        )


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Parse a labelSelector such as ``app=x,tier notin (a, b),!headless``.

    Raises:
        ApiError: 400, the text is not a selector.
    """
    return tuple(_label(part.strip(), text) for part in _split(text) if text.strip())


def parse_fields(text: str, resource: Resource) -> tuple[FieldRequirement, ...]:
    """Parse a fieldSelector such as ``metadata.name=x,spec.clusterIP!=None``.

    Raises:
        ApiError: 400, the text is not a selector or the resource has no such field label.
    """
    found = []
    for part in text.split(","):
        if not part.strip():
            continue
        match = _FIELD.fullmatch(part.strip())
        if match is None:
            raise ApiError.bad_request(f"invalid field selector {text!r}: cannot parse {part!r}")
        if match["key"] not in resource.selectable:
            known = ", ".join(f'"{label}"' for label in resource.selectable)
            raise ApiError.bad_request(
                f'"{match["key"]}" is not a known field selector of {resource.plural}: only {known}'
            )
        found.append(FieldRequirement(match["key"], match["op"] != "!=", match["value"]))
    return tuple(found)


def label_values(obj: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of any object, however malformed: what is no string pair is left out."""
    metadata = obj.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    if not isinstance(labels, dict):
        return {}
    return {k: v for k, v in labels.items() if isinstance(k, str) and isinstance(v, str)}


def field_value(obj: Mapping[str, Any], path: str) -> str:
    """Return the field at a dotted path as selectors compare it; absent or not a scalar is ``""``."""
    value: object = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else ""


def _split(text: str) -> list[str]:
    return re.split(r",(?![^()]*\))", text)


def _label(part: str, whole: str) -> Requirement:
    if match := _SET.fullmatch(part):
        values = frozenset(value.strip() for value in match["values"].split(","))
        if all(re.fullmatch(_VALUE, value) for value in values):
            return Requirement(match["key"], match["op"] == "in", values)
    elif match := _EQUALITY.fullmatch(part):
        return Requirement(match["key"], match["op"] != "!=", frozenset({match["value"]}))
    elif match := _EXISTS.fullmatch(part):
        return Requirement(match["key"], not match["absent"])
    raise ApiError.bad_request(f"unable to parse requirement {part!r} of label selector {whole!r}")
