"""Decode raw JSON into wire structs, one object at a time, so that a defect affects only its object.

An error names the object as far as it could be read, so that a source can keep its former version in force.
"""

import re

import msgspec

from kproxy.state.kinds import Kind
from kproxy.state.problems import ObjectRejected, Problem, show
from kproxy.state.wire import NamespacedObject, WireObject

# RFC 1123 subdomain: the widest form the API server allows for these names.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ERROR_PATH = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


def decode(kind: Kind, raw: bytes | msgspec.Raw) -> WireObject:
    """Decode one object of a known kind.

    Raises ObjectRejected, whose problem names the object, the field and the reason.
    """
    try:
        decoded = kind.decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _rejected(kind, raw, error) from error
    _check_name(kind, decoded.key, "metadata.name", decoded.metadata.name)
    if kind.prepare is not None:
        kind.prepare(decoded)
    if isinstance(decoded, NamespacedObject):
        _check_name(kind, decoded.key, "metadata.namespace", decoded.metadata.namespace)
    return decoded


def _check_name(kind: Kind, key: str, field: str, value: str) -> None:
    if _NAME.fullmatch(value) is None:
        problem = Problem(f"{kind} {show(key)}", field, show(value), "not a DNS-1123 name")
        raise ObjectRejected(problem, None)


def _rejected(kind: Kind, raw: bytes | msgspec.Raw, error: Exception) -> ObjectRejected:
    key, document = _identify(kind, raw)
    match = _ERROR_PATH.match(str(error))
    path = match["path"] if match and match["path"] else "object"
    reason = match["reason"] if match else str(error)
    problem = Problem(f"{kind} {key or '?'}", path, show(_value_at(document, path)), reason)
    return ObjectRejected(problem, key)


def _identify(kind: Kind, raw: bytes | msgspec.Raw) -> tuple[str | None, object]:
    """The key of an object that does not decode, if its metadata can still be read, and its plain JSON."""
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(metadata, dict):
        return None, document
    name, namespace = metadata.get("name"), metadata.get("namespace", "default")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        return None, document
    if not kind.namespaced:
        return name, document
    if not isinstance(namespace, str) or _NAME.fullmatch(namespace) is None:
        return None, document
    return f"{namespace}/{name}", document


def _value_at(document: object, path: str) -> object:
    value = document
    steps = re.findall(r"[^.\[\]]+", path)
    for number, step in enumerate(steps):
        if isinstance(value, dict):
            rest = ".".join(steps[number:])
            if rest in value:  # a label's key contains dots
                return value[rest]
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
