"""Strategic merge patch, and the create-or-merge form of server-side apply.

Lists of objects are merged by key where Kubernetes' types say so (:data:`MERGE_KEYS`); all other
lists are replaced. Directives handled: ``$patch`` (delete, replace, merge), ``$retainKeys``,
``$deleteFromPrimitiveList/x`` and ``$setElementOrder/x`` (which ``kubectl apply`` sends).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kproxy_lab.apiserver.errors import JSON, ApiError

MERGE_KEYS: dict[tuple[str, str], tuple[str, ...]] = {
    ("*", "metadata.ownerReferences"): ("uid",),
    ("*", "metadata.finalizers"): (),
    ("*", "status.conditions"): ("type",),
    ("Service", "spec.ports"): ("port", "protocol"),
    ("Node", "spec.taints"): ("key",),
    ("Node", "spec.podCIDRs"): (),
    ("Node", "status.addresses"): ("type",),
    ("Pod", "spec.containers"): ("name",),
    ("Pod", "spec.containers.env"): ("name",),
    ("Pod", "spec.containers.ports"): ("containerPort", "protocol"),
    ("Pod", "spec.containers.volumeMounts"): ("mountPath",),
    ("Pod", "spec.initContainers"): ("name",),
    ("Pod", "spec.volumes"): ("name",),
    ("Pod", "status.podIPs"): ("ip",),
}
"""Merge keys by (kind or ``*``, dotted path); the empty tuple is a merged list of primitives.

From the patchStrategy/patchMergeKey tags of k8s.io/api, with one difference: the key of ports includes
the protocol, as their list-map keys say, so that adding UDP 53 beside TCP 53 works.
"""

_DEFAULT_KEY_VALUES = {"protocol": "TCP"}


def strategic_merge(kind: str, target: JSON, patch: JSON) -> JSON:
    """Return ``target`` with a strategic merge patch applied.

    Raises:
        ApiError: 400 for an unknown directive or a list element without its merge key.
    """
    return _merge_map(kind, "", target, patch, _merge_list)


def server_side_apply(kind: str, target: JSON, applied: JSON) -> JSON:
    """Return ``target`` with an applied configuration merged in.

    Without managed fields the server cannot know which fields the applier dropped, so a keyed list becomes
    exactly the applied elements (each merged into its current value); other fields are only added or changed.
    """
    return _merge_map(kind, "", target, applied, _apply_list)


ListMerge = Callable[[str, str, list[Any], list[Any], list[Any] | None], list[Any]]


def _merge_map(kind: str, path: str, target: JSON, patch: JSON, merge_list: ListMerge) -> JSON:
    directive = patch.get("$patch")
    if directive == "replace":
        return {k: v for k, v in patch.items() if k != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise ApiError.bad_request(f"unknown patch directive {directive!r}")
    result = dict(target)
    if "$retainKeys" in patch:
        result = {k: v for k, v in result.items() if k in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [item for item in _items(result.get(name)) if item not in _items(value)]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            current = result.get(key)
            if value.get("$patch") == "delete":
                result.pop(key, None)
                continue
            base = current if isinstance(current, dict) else {}
            result[key] = _merge_map(kind, _join(path, key), base, value, merge_list)
        elif isinstance(value, list):
            order = patch.get(f"$setElementOrder/{key}")
            result[key] = merge_list(kind, _join(path, key), _items(result.get(key)), value, order)
        else:
            result[key] = value
    for key, order in patch.items():
        name = key.partition("/")[2]
        if key.startswith("$setElementOrder/") and name in result and name not in patch:
            result[name] = _ordered(_keys(kind, _join(path, name)), _items(result[name]), _items(order))
    return result


def _merge_list(
    kind: str, path: str, target: list[Any], patch: list[Any], order: list[Any] | None
) -> list[Any]:
    keys = _keys(kind, path)
    if keys is None:
        return patch
    if not keys:
        merged = [*target, *(item for item in patch if item not in target)]
        return _ordered(keys, merged, order)
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    result = list(target)
    for item in patch:
        if not isinstance(item, dict) or keys[0] not in item:
            raise ApiError.bad_request(f"an element of {path} does not contain its merge key {keys[0]!r}")
        if item.get("$patch") == "delete":
            result = [one for one in result if not _same(keys, one, item)]
            continue
        at = _find(keys, result, item, order)
        if at is None:
            result.append(_merge_map(kind, path, {}, item, _merge_list))
        else:
            result[at] = _merge_map(kind, path, result[at], item, _merge_list)
    return _ordered(keys, result, order)


def _apply_list(
    kind: str, path: str, target: list[Any], patch: list[Any], order: list[Any] | None
) -> list[Any]:
    keys = _keys(kind, path)
    if not keys:
        return patch if keys is None else [*target, *(item for item in patch if item not in target)]
    result = []
    for item in patch:
        if not isinstance(item, dict):
            raise ApiError.bad_request(f"an element of {path} is no object")
        at = _find(keys, target, {**_defaults(keys), **item}, order)
        result.append(_merge_map(kind, path, target[at] if at is not None else {}, item, _apply_list))
    return result


def _find(keys: tuple[str, ...], target: list[Any], item: JSON, order: list[Any] | None) -> int | None:
    """Return the index of the list element that a patch element refers to.

    ``kubectl apply`` knows only the first key; when its element order says there is to be no more
    than one element with that key, a changed second key is a change and not an addition.
    """
    for at, one in enumerate(target):
        if _same(keys, one, item):
            return at
    same_first = [at for at, one in enumerate(target) if _same(keys[:1], one, item)]
    if order is not None and same_first:
        wanted = sum(1 for one in order if _same(keys[:1], one, item))
        if wanted <= len(same_first):
            return same_first[0]
    return None


def _same(keys: tuple[str, ...], one: Any, item: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(item, dict):
        return False
    return all(one.get(k, _DEFAULT_KEY_VALUES.get(k)) == item[k] for k in keys if k in item)


def _ordered(keys: tuple[str, ...] | None, items: list[Any], order: list[Any] | None) -> list[Any]:
    if not order:
        return items

    def rank(item: Any) -> int:
        for at, wanted in enumerate(order):
            if item == wanted or (keys and _same(keys, item, wanted)):
                return at
        return len(order)

    return sorted(items, key=rank)


def _keys(kind: str, path: str) -> tuple[str, ...] | None:
    found = MERGE_KEYS.get((kind, path))
    return MERGE_KEYS.get(("*", path)) if found is None else found


def _defaults(keys: tuple[str, ...]) -> JSON:
    return {key: _DEFAULT_KEY_VALUES[key] for key in keys if key in _DEFAULT_KEY_VALUES}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
