"""Parse YAML documents into plain values with line numbers, and refuse what Kubernetes does not accept.

PyYAML's own constructor turns timestamps into dates, lets a repeated key win silently and takes twice as long
as reading libyaml's events here does. Values follow YAML 1.1 as PyYAML reads it (`on` is a boolean, 010 is
eight), except that timestamps and base-60 numbers stay text, as in Kubernetes' own YAML reader.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

MAX_DEPTH = 64
"""Nesting of collections in one document; a Service has about eight."""

MAX_ALIASED = 4 * 1024 * 1024
"""Total characters and nodes that the aliases of one document may add (against alias bombs)."""

_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_TRUE, _FALSE = ("yes", "true", "on"), ("no", "false", "off")
_BOOLEANS = {
    form: word in _TRUE for word in _TRUE + _FALSE for form in (word, word.capitalize(), word.upper())
}
_TAGGED = {"int": int, "float": float, "bool": bool, "null": type(None)}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?)")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBER_START = frozenset("+-.0123456789")
_LONGEST_NUMBER = 400


Scalar = str | int | float | bool | None


class ManifestSyntaxError(ValueError):
    """Text that cannot be read any further. `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Fault(NamedTuple):
    """A defect of a document that leaves the rest of the text readable. `line` counts from 1."""

    line: int
    reason: str


class YamlDocument(NamedTuple):
    """One document: its value, its first line, and the first line of each mapping down to list items."""

    value: object
    line: int
    lines: dict[int, int]
    """id() of a mapping at depth 0 to 2 -> line; valid as long as `value` is alive."""
    faults: list[Fault]


def yaml_documents(text: str) -> Iterator[YamlDocument]:
    """Yield the documents of a text one after the other; empty ones are left out.

    Raises ManifestSyntaxError where the text stops being YAML, nests too deep or expands too far.
    """
    loader = _LOADER(text)
    try:
        composer = _Composer()
        while True:
            event = loader.get_event()
            if event is None or isinstance(event, yaml.StreamEndEvent):
                return
            document = composer.feed(event)
            if document is not None:
                composer = _Composer()
                if document.value is not None or document.faults:
                    yield document
    except yaml.YAMLError as error:
        raise _syntax_error(error) from error
    finally:
        loader.dispose()


def _syntax_error(error: yaml.YAMLError) -> ManifestSyntaxError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.problem, error.context) if part)
        return ManifestSyntaxError(mark.line + 1 if mark else 1, reason)
    return ManifestSyntaxError(1, " ".join(str(error).split()))


class _Frame:
    """A collection that is not closed yet."""

    __slots__ = ("anchor", "is_key", "items", "key", "keyed", "line", "mapping", "merges")

    def __init__(self, line: int, anchor: str | None, is_mapping: bool, is_key: bool) -> None:
        self.line = line
        self.anchor = anchor
        self.is_key = is_key
        self.mapping: dict[str, object] | None = {} if is_mapping else None
        self.items: list[object] = []
        self.key: str | None = None
        self.keyed = False
        self.merges: list[object] | None = None

    @property
    def value(self) -> object:
        return self.items if self.mapping is None else self.mapping


class _Composer:
    """Builds one document from its events, without recursion."""

    def __init__(self) -> None:
        self._stack: list[_Frame] = []
        self._anchors: dict[str, object] = {}
        self._aliased = 0
        self._line = 1
        self._root: object = None
        self._lines: dict[int, int] = {}
        self._faults: list[Fault] = []

    def feed(self, event: Any) -> YamlDocument | None:
        """Process one event; return the document when it is complete."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            self._open(event, kind is yaml.MappingStartEvent)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._close()
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self._line = event.start_mark.line + 1
        elif kind is yaml.DocumentEndEvent:
            return YamlDocument(self._root, self._line, self._lines, self._faults)
        return None

    def _fault(self, event: Any, reason: str) -> None:
        self._faults.append(Fault(event.start_mark.line + 1, reason))

    def _scalar(self, event: Any) -> None:
        text: str = event.value
        plain = event.implicit[0] and event.tag is None
        stack = self._stack
        if stack and stack[-1].mapping is not None and not stack[-1].keyed:
            if plain and text == "<<":
                stack[-1].keyed, stack[-1].key = True, None
                return
            if plain and not isinstance(resolve(text), str):
                self._fault(event, f"the key {text!r} is not text: put it in quotes")
            self._key(event, text)
            return
        if plain:
            value = resolve(text)
        elif event.tag is None or event.tag in ("!", _TAG + "str"):
            value = text
        else:
            value = self._tagged(event, text)
        if isinstance(value, float) and not abs(value) < float("inf"):
            self._fault(event, f"{text} is not a number that JSON has")
            value = None
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        self._attach(event, value)

    def _tagged(self, event: Any, text: str) -> Scalar:
        value = resolve(text)
        wanted = _TAGGED.get(event.tag.removeprefix(_TAG))
        if wanted is None:
            self._fault(event, f"the tag {event.tag!r} is not supported")
        elif not isinstance(value, wanted):
            self._fault(event, f"{text!r} is not what its tag {event.tag!r} says")
        return value

    def _key(self, event: Any, text: str) -> None:
        frame = self._stack[-1]
        mapping = frame.mapping or {}
        if text in mapping:
            self._fault(event, f"the key {text!r} is there twice")
        frame.keyed, frame.key = True, text

    def _open(self, event: Any, is_mapping: bool) -> None:
        line = event.start_mark.line + 1
        stack = self._stack
        if len(stack) >= MAX_DEPTH:
            raise ManifestSyntaxError(line, f"nested deeper than {MAX_DEPTH} levels")
        is_key = bool(stack) and stack[-1].mapping is not None and not stack[-1].keyed
        if is_key:
            self._fault(event, "a key is not text")
        if event.tag not in (None, "!", _TAG + ("map" if is_mapping else "seq")):
            self._fault(event, f"the tag {event.tag!r} is not supported")
        if not stack:
            self._line = line
        frame = _Frame(line, event.anchor, is_mapping, is_key)
        if is_mapping and len(stack) <= 2:
            self._lines[id(frame.mapping)] = line
        stack.append(frame)

    def _close(self) -> None:
        frame = self._stack.pop()
        if frame.merges is not None:
            self._merge(frame)
        if frame.anchor is not None:
            self._anchors[frame.anchor] = frame.value
        if frame.is_key:
            self._stack[-1].keyed, self._stack[-1].key = True, "?"
        else:
            self._attach(None, frame.value)

    def _merge(self, frame: _Frame) -> None:
        """Apply the merge key `<<`: the mapping's own keys take precedence (yaml.org/type/merge)."""
        for source in frame.merges or ():
            for each in source if isinstance(source, list) else [source]:
                if not isinstance(each, dict) or frame.mapping is None:
                    self._faults.append(Fault(frame.line, "`<<` takes a mapping or a list of mappings"))
                    continue
                for key, value in each.items():
                    frame.mapping.setdefault(key, value)

    def _alias(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if event.anchor not in self._anchors:
            self._fault(event, f"the alias *{event.anchor} has no anchor before it that is complete")
            self._attach(event, None)
            return
        value = self._anchors[event.anchor]
        self._aliased += _size(value, MAX_ALIASED - self._aliased)
        if self._aliased > MAX_ALIASED:
            raise ManifestSyntaxError(line, f"aliases expand to more than {MAX_ALIASED} characters")
        self._attach(event, value)

    def _attach(self, event: Any, value: object) -> None:
        if not self._stack:
            self._root = value
            return
        frame = self._stack[-1]
        if frame.mapping is None:
            frame.items.append(value)
        elif not frame.keyed:
            self._fault(event, "a key is not text")
            frame.keyed, frame.key = True, "?"
        else:
            if frame.key is None:
                frame.merges = [*(frame.merges or ()), value]
            else:
                frame.mapping[frame.key] = value
            frame.keyed = False


def _size(value: object, limit: int) -> int:
    """Characters and nodes of a value with every alias expanded; the count stops soon after `limit`."""
    size = 0
    pending = [value]
    while pending and size <= limit:
        each = pending.pop()
        size += 1
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, dict):
            size += sum(map(len, each))
            pending.extend(each.values())
        elif isinstance(each, list):
            size += len(each)
            pending.extend(each)
    return size


@functools.lru_cache(maxsize=16384)
def resolve(text: str) -> Scalar:
    """The value of a plain scalar: null, boolean, number or text (YAML 1.1, see the module's docstring)."""
    if text in _NULLS:
        return None
    if text[0] not in _NUMBER_START:
        return _BOOLEANS.get(text, text)
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INT.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


def _integer(text: str) -> int | str:
    digits = text.replace("_", "")
    sign = -1 if digits[0] == "-" else 1
    digits = digits.lstrip("+-")
    try:
        if digits.startswith(("0b", "0x")):
            return sign * int(digits, 0)
        return sign * int(digits, 8 if digits.startswith("0") else 10)
    except ValueError:
        return text
