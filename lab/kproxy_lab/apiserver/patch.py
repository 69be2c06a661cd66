"""JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386) over plain decoded JSON."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from kproxy_lab.apiserver.errors import JSON, ApiError

_MAX_OPERATIONS = 10_000
"""As the real server's limit on the operations of one JSON patch."""


def merge_patch(target: Any, patch: Any) -> Any:
    """Return ``target`` with a merge patch applied: null deletes, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: JSON, operations: Any) -> JSON:
    """Return ``target`` with a list of JSON patch operations applied.

    Raises:
        ApiError: 400 for a malformed patch; 422 when an operation does not fit the object
            (missing path, failed test), as the real server answers.
    """
    if not isinstance(operations, list) or len(operations) > _MAX_OPERATIONS:
        raise ApiError.bad_request(f"a JSON patch is a list of at most {_MAX_OPERATIONS} operations")
    document: Any = copy.deepcopy(target)
    for operation in operations:
        document = _apply(document, operation)
    if not isinstance(document, dict):
        raise ApiError.bad_request("the patch leaves no object")
    return document


def _apply(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
        raise ApiError.bad_request(f"not a JSON patch operation: {operation!r}")
    path = _pointer(operation["path"])
    match operation.get("op"):
        case "add":
            return _add(document, path, _value(operation))
        case "replace":
            _get(document, path)
            return _add(_remove(document, path), path, _value(operation)) if path else _value(operation)
        case "remove":
            return _remove(document, path)
        case "test":
            if _get(document, path) != _value(operation):
                _unfit(f"test of {operation['path']} failed")
            return document
        case "move":
            source = _source(operation)
            value = _get(document, source)
            return _add(_remove(document, source), path, value)
        case "copy":
            return _add(document, path, copy.deepcopy(_get(document, _source(operation))))
    raise ApiError.bad_request(f"unknown JSON patch operation {operation.get('op')!r}")


def _value(operation: JSON) -> Any:
    if "value" not in operation:
        raise ApiError.bad_request(f"operation without a value: {operation!r}")
    return operation["value"]


def _source(operation: JSON) -> list[str]:
    source = operation.get("from")
    if not isinstance(source, str):
        raise ApiError.bad_request(f"operation without a from: {operation!r}")
    return _pointer(source)


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ApiError.bad_request(f"not a JSON pointer: {text!r}")
    return [step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]]


def _index(items: list[Any], step: str, *, end: int) -> int:
    if not step.isdecimal() or int(step) >= end or (step != "0" and step.startswith("0")):
        _unfit(f"no element {step!r} in a list of {len(items)}")
    return int(step)


def _get(document: Any, path: list[str]) -> Any:
    for step in path:
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list):
            document = document[_index(document, step, end=len(document))]
        else:
            _unfit(f"nothing at {step!r}")
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, step = _get(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[step] = value
    elif isinstance(parent, list):
        at = len(parent) if step == "-" else _index(parent, step, end=len(parent) + 1)
        parent.insert(at, value)
    else:
        _unfit(f"cannot add {step!r} to a scalar")
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        return None
    _get(document, path)
    parent = _get(document, path[:-1])
    if isinstance(parent, list):
        del parent[int(path[-1])]
    else:
        del parent[path[-1]]
    return document


def _unfit(why: str) -> NoReturn:
    raise ApiError(422, f"the patch does not fit the object: {why}")
