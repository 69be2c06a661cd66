"""Read one manifest file: its objects, and its defects by line.

A defect affects as little as possible. An object that does not decode affects only itself. A document without
a kind makes the file not `intact`, so that no object that the file held before is removed. Text that cannot
be parsed any further affects the whole file.
"""

import bisect
import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import structlog

from kproxy.sources.yaml_documents import Fault, ManifestSyntaxError, YamlDocument, yaml_documents
from kproxy.state.decode import decode
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import ObjectRejected, Problem, show
from kproxy.state.wire import EndpointSlice, WireObject

log = structlog.stdlib.get_logger(__name__)

SUFFIXES = (".yaml", ".yml", ".json")


class ObjectKey(NamedTuple):
    """The identity of an object. `key` is `namespace/name`, or the name if there is no namespace."""

    kind: Kind
    key: str


class Rejection(NamedTuple):
    """An object or document that could not be used, with the arguments of Sink.reject."""

    kind: Kind
    key: str | None
    problem: Problem


@dataclass(slots=True)
class ManifestFile:
    """The content of one file. `intact` is False if the file may hold more objects than are named here.

    `read` is False if the file could not be read; a retry may succeed.
    """

    objects: dict[ObjectKey, WireObject] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    intact: bool = True
    read: bool = True

    @property
    def unreadable(self) -> set[ObjectKey]:
        """The objects in the file that could not be decoded."""
        return {ObjectKey(each.kind, each.key) for each in self.rejections if each.key is not None}


class _TypeMeta(msgspec.Struct):
    api_version: object = msgspec.field(name="apiVersion", default=None)
    kind: object = None
    items: msgspec.Raw = msgspec.Raw(b"null")


class _RawObject(NamedTuple):
    """An undecoded object: its JSON and first line, the faults found in it, and the kind from its list."""

    json: bytes | msgspec.Raw
    line: int
    faults: list[Fault]
    implied: Kind | None


class _Special(enum.Enum):
    NOT_A_LIST = enum.auto()


class _Types:
    """The (apiVersion, kind) of objects and of lists of them. A v1 List names no kind for its items: None."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.objects = {(kind.api_version, kind.name): kind for kind in kinds}
        self.lists: dict[tuple[str, str], Kind | None] = {
            (api, f"{name}List"): kind for (api, name), kind in self.objects.items()
        }
        self.lists["v1", "List"] = None


_NO_ITEMS = "items of a list is not a list"
_BLANK = re.compile(r"[ \t\r\n]*")
_NULL = msgspec.Raw(b"null")
_TYPE_META = msgspec.json.Decoder(_TypeMeta)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def read_manifest(name: str, data: bytes, kinds: Iterable[Kind] = KINDS) -> ManifestFile:
    """Read the objects of `kinds` from the bytes of a file; others are ignored. Never raises.

    The extension of `name` selects JSON or YAML; problems contain the name.
    """
    content = ManifestFile()
    types = _Types(kinds)
    try:
        text = data.decode("utf-8-sig")
        found = _json_objects(data, text, types) if name.endswith(".json") else _yaml_objects(text, types)
        for raw in found:
            _add(content, name, raw, types)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _broken(content, name, line, f"not UTF-8: byte {data[error.start]:#04x}", whole=True)
    except ManifestSyntaxError as error:
        _broken(content, name, error.line, error.reason, whole=True)
    return content


def unreadable_file(name: str, reason: str, *, read: bool = True) -> ManifestFile:
    """The content of a file that cannot be used at all."""
    content = ManifestFile(read=read)
    _broken(content, name, 1, reason, whole=True)
    return content


def _broken(content: ManifestFile, name: str, line: int, reason: str, *, whole: bool = False) -> None:
    """Note a defect that belongs to no object; with `whole`, drop the objects read so far."""
    problem = Problem(f"file {name}", f"line {line}", show(None), reason)
    if whole:
        content.objects.clear()
        content.rejections.clear()
    content.rejections.append(Rejection(Kind.SERVICE, None, problem))
    content.intact = False


def _completed(decoded: WireObject) -> WireObject:
    """Apply the API server's defaulting: a slice's port without a name gets the empty name."""
    if not isinstance(decoded, EndpointSlice) or all(port.name is not None for port in decoded.ports or ()):
        return decoded
    ports = tuple(msgspec.structs.replace(port, name=port.name or "") for port in decoded.ports or ())
    return msgspec.structs.replace(decoded, ports=ports)


def _add(content: ManifestFile, name: str, raw: _RawObject, types: _Types) -> None:
    if raw.faults:
        for fault in raw.faults:
            _broken(content, name, fault.line, fault.reason)
        return
    kind = _kind_of(content, name, raw, types)
    if kind is None:
        return
    try:
        decoded = _completed(decode(kind, raw.json))
    except ObjectRejected as rejected:
        problem = _with_position(rejected.problem, name, raw.line)
        content.rejections.append(Rejection(kind, rejected.key, problem))
        content.intact = content.intact and rejected.key is not None
        return
    identity = ObjectKey(kind, decoded.key)
    if identity in content.objects:
        problem = Problem(
            f"{kind} {decoded.key}", "metadata.name", show(decoded.metadata.name), "is in this file already"
        )
        content.rejections.append(Rejection(kind, None, _with_position(problem, name, raw.line)))
        return
    content.objects[identity] = decoded


def _kind_of(content: ManifestFile, name: str, raw: _RawObject, types: _Types) -> Kind | None:
    """The kind of an object if it is one of the requested kinds; its defects are noted."""
    try:
        meta = _TYPE_META.decode(raw.json)
    except (ValueError, RecursionError):
        _broken(content, name, raw.line, "not an object: a mapping with apiVersion and kind is expected")
        return None
    if meta.kind is None and meta.api_version is None and raw.implied is not None:
        return raw.implied
    for key, value in (("kind", meta.kind), ("apiVersion", meta.api_version)):
        if not isinstance(value, str) or not value:
            _broken(content, name, raw.line, f"{key} is missing or not text")
            return None
    kind = types.objects.get((str(meta.api_version), str(meta.kind)))
    if kind is None:
        log.debug("manifest_ignored", file=name, line=raw.line, api=meta.api_version, kind=meta.kind)
    return kind


def _with_position(problem: Problem, name: str, line: int) -> Problem:
    reason = f"{problem.reason} (file {name}, line {line})"
    return Problem(problem.object, problem.field, problem.value, reason)


def _yaml_objects(text: str, types: _Types) -> Iterator[_RawObject]:
    for document in yaml_documents(text):
        value = document.value
        kind = _list_kind(value, types)
        if kind is _Special.NOT_A_LIST or not isinstance(value, dict):
            yield _encoded(value, document.line, document.faults, None)
            continue
        items = value.get("items")
        if items is not None and not isinstance(items, list):
            yield _RawObject(b"null", document.line, [Fault(document.line, _NO_ITEMS)], None)
            continue
        yield from _yaml_items(document, items or [], kind)


def _yaml_items(document: YamlDocument, items: list[object], implied: Kind | None) -> Iterator[_RawObject]:
    """The items of a list, each with the faults on its own lines; faults outside of all items come first."""
    lines: list[int] = []
    for item in items:
        lines.append(document.lines.get(id(item), lines[-1] if lines else document.line))
    of_item: dict[int, list[Fault]] = {}
    for fault in document.faults:
        of_item.setdefault(bisect.bisect_right(lines, fault.line) - 1, []).append(fault)
    if -1 in of_item:
        yield _RawObject(b"null", document.line, of_item[-1], None)
    for index, (item, line) in enumerate(zip(items, lines, strict=True)):
        yield _encoded(item, line, of_item.get(index, []), implied)


def _encoded(value: object, line: int, faults: list[Fault], implied: Kind | None) -> _RawObject:
    if faults:
        return _RawObject(b"null", line, faults, implied)
    try:
        return _RawObject(msgspec.json.encode(value), line, [], implied)
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        return _RawObject(b"null", line, [Fault(line, f"cannot be written as JSON: {error}")], implied)


def _list_kind(value: object, types: _Types) -> Kind | _Special | None:
    """The kind of a list's items (None: each item has its own), or a marker that the value is no list."""
    if not isinstance(value, Mapping):
        return _Special.NOT_A_LIST
    api, kind = value.get("apiVersion"), value.get("kind")
    if isinstance(api, str) and isinstance(kind, str):
        return types.lists.get((api, kind), _Special.NOT_A_LIST)
    return _Special.NOT_A_LIST


def _json_objects(data: bytes, text: str, types: _Types) -> Iterator[_RawObject]:
    body = data.removeprefix(b"\xef\xbb\xbf")
    try:
        documents = [(msgspec.json.decode(body, type=msgspec.Raw), 1)] if body.strip() else []
    except (ValueError, RecursionError):
        documents = _several_json(text)
    for raw, line in documents:
        yield from _json_document(raw, line, types)


def _several_json(text: str) -> list[tuple[msgspec.Raw, int]]:
    """Documents written one after the other, as kubectl reads them; raises ManifestSyntaxError."""
    decoder = json.JSONDecoder()
    documents: list[tuple[msgspec.Raw, int]] = []
    text = text.removeprefix("\ufeff")
    position, line = 0, 1
    while True:
        blank = _BLANK.match(text, position)
        start = blank.end() if blank else position
        line += text.count("\n", position, start)
        if start == len(text):
            return documents
        try:
            _, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise ManifestSyntaxError(error.lineno, f"not JSON: {error.msg}") from error
        except RecursionError as error:
            raise ManifestSyntaxError(line, "not JSON: nested too deep") from error
        documents.append((msgspec.Raw(text[start:end].encode()), line))
        line += text.count("\n", start, end)
        position = end


def _json_document(raw: msgspec.Raw, line: int, types: _Types) -> Iterator[_RawObject]:
    try:
        meta = _TYPE_META.decode(raw)
    except (ValueError, RecursionError):
        yield _RawObject(raw, line, [], None)
        return
    kind = _list_kind({"apiVersion": meta.api_version, "kind": meta.kind}, types)
    if kind is _Special.NOT_A_LIST:
        yield _RawObject(raw, line, [], None)
        return
    try:
        items = _ITEMS.decode(meta.items) if meta.items != _NULL else []
    except ValueError:
        yield _RawObject(raw, line, [Fault(line, _NO_ITEMS)], None)
        return
    body, position = bytes(raw), 0
    for item in items:
        start = body.find(bytes(item), position)
        line += body.count(b"\n", position, start)
        position = start
        yield _RawObject(item, line, [], kind)
