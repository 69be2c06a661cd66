"""What can still be read of a spec that has a wrong type or an unknown field.

Its podSelector and policyTypes say which pods such a policy closes, and in which direction. The error is
named as for valid types: by the path of the field, its value and the reason.
"""

import re
from collections.abc import Collection

import msgspec

from kproxy.plan.policy.defects import Defects
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.selectors import EVERYTHING, Selector, WireSelector, read_selector

TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
"""The values of policyTypes."""

BOTH = frozenset(Direction)

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises: a wrong type, malformed JSON, text that is not UTF-8, nesting that is too deep."""

_PATH = re.compile(r" - at `\$(?P<path>.*)`$", re.DOTALL)
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def selector_of(raw: bytes) -> Selector:
    """The podSelector of a spec, if it can be read; else the one that selects all pods."""
    spec = _plain(raw)
    selector = spec.get("podSelector") if isinstance(spec, dict) else None
    if selector is None:
        return EVERYTHING
    defects = Defects()
    try:
        found = read_selector(msgspec.convert(selector, WireSelector), "spec.podSelector", defects)
    except msgspec.ValidationError:
        return EVERYTHING
    return EVERYTHING if defects else found


def directions_of(raw: bytes, fields: Collection[str]) -> frozenset[Direction]:
    """The directions of a spec if they can be read, else both; `fields` are those that a spec may have.

    An unknown field may be a list of rules with a wrong name, so it makes the default unreadable.
    """
    spec = _plain(raw)
    if not isinstance(spec, dict):
        return BOTH
    types = spec.get("policyTypes")
    if types:
        known = isinstance(types, list) and all(isinstance(each, str) and each in TYPES for each in types)
        return frozenset(TYPES[each] for each in types) if known else BOTH
    if types not in (None, []) or spec.get("egress") not in (None, []) or not spec.keys() <= set(fields):
        return BOTH
    return frozenset({Direction.INGRESS})


def explain(raw: bytes, error: Exception) -> str:
    """Name the field and value of an error of decoding."""
    text = "nested too deep" if isinstance(error, RecursionError) else str(error)
    path = ""
    if at := _PATH.search(text):
        text, path = text[: at.start()], at["path"]
    if field := _FIELD.fullmatch(text):
        path += f".{field['name']}"
        text = "unknown field" if field[1] == "contains unknown" else "is required"
    defects = Defects()
    defects.add(f"spec{path}", _value_at(_plain(raw), path), text)
    return defects.result()[0]


def _plain(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except UNDECODABLE:
        return None


def _value_at(value: object, path: str) -> object:
    for name, number in _STEP.findall(path):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and number and int(number) < len(value):
            value = value[int(number)]
        else:
            return None
    return value
