"""Conversion between plain YAML values and the schema; one pass finds every defect, with its path.

msgspec's own conversion stops at the first defect. Operators need all of them to correct a file.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from kproxy.config.settings import Section
from kproxy.config.values import Check, EmptyIsDefault, EmptyIsNotWritten, Reader
from kproxy.state.problems import show

T = TypeVar("T", bound=Section)

_INT32 = range(-(1 << 31), 1 << 31)
"""All integers of the schema are int32 or uint32 in Go; the latter are checked not to be negative."""


class Defect(NamedTuple):
    """A defect at a path such as `iptables.syncPeriod` or `nodePortAddresses[1]`."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def decode(kind: type[T], plain: object, path: str = "") -> tuple[T, list[Defect]]:
    """Read a mapping. A missing, null or defective field gets its default."""
    defects: list[Defect] = []
    return _section(kind, plain, path, defects), defects


def encode(section: Section) -> dict[str, object]:
    """Return the mapping that `decode` reads as this section: every field by its name in the file."""
    return {
        field.encode_name: _plain(value, field.type)
        for field in fields(section)
        if (value := getattr(section, field.name)) or not _is_omitted_if_empty(field.type)
    }


def flatten(section: Section, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each path and value; a list is one value, and so are all gates."""
    for field in fields(section):
        value = getattr(section, field.name)
        path = prefix + field.encode_name
        if isinstance(value, Section):
            yield from flatten(value, path + ".")
        else:
            yield path, value


def replace(section: T, path: str, value: object) -> T:
    """Return the section with another value at a path. Raises KeyError for an unknown path."""
    head, _, rest = path.partition(".")
    name = {field.encode_name: field.name for field in fields(section)}[head]
    new = replace(getattr(section, name), rest, value) if rest else value
    return msgspec.structs.replace(section, **{name: new})


def assign(section: T, path: str, value: object, label: str) -> tuple[T, list[Defect]]:
    """Read a plain value into one field; an empty value counts. Defects have the path `label`.

    Raises KeyError for an unknown path.
    """
    defects: list[Defect] = []
    read = _value(_type_at(type(section), path), value, label, defects, explicit=True)
    return (section if defects else replace(section, path, read)), defects


def _type_at(kind: type[Section], path: str) -> Any:
    head, _, rest = path.partition(".")
    found = {field.encode_name: field.type for field in fields(kind)}[head]
    return _type_at(found, rest) if rest else found


def fields(section: Section | type[Section]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a section in the order of their declaration."""
    return msgspec.structs.fields(section)


def _section(kind: type[T], plain: object, path: str, defects: list[Defect]) -> T:
    if not isinstance(plain, dict):
        if plain is not None:
            defects.append(Defect(path or "(document)", f"{show(plain)} is not a mapping"))
        return kind()
    known = {field.encode_name: field for field in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in plain.items():
        where = f"{path}.{name}" if path else name
        field = known.get(name)
        if field is None:
            defects.append(Defect(where, "unknown field" + _hint(name, known)))
        elif value is not None:
            _take(field, value, where, values, defects)
    return kind(**values)


def _hint(name: str, known: Mapping[str, object]) -> str:
    by_case = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_case, n=1)
    return f", did you mean {by_case[close[0]]}?" if close else ""


def _take(
    field: msgspec.structs.FieldInfo, value: object, path: str, values: dict[str, Any], defects: list[Defect]
) -> None:
    """Read one field. A defective value gets its default; of a section only the defective fields do."""
    before = len(defects)
    read = _value(field.type, value, path, defects)
    if not isinstance(read, Section) and len(defects) > before:
        return
    if read or not empty_is_default(field.type):
        values[field.name] = read


def _value(
    annotation: Any, value: object, path: str, defects: list[Defect], *, explicit: bool = False
) -> Any:
    bare, extras = split_annotation(annotation)
    if isinstance(bare, type) and issubclass(bare, Section):
        return _section(bare, value, path, defects)
    origin = typing.get_origin(bare)
    if origin is tuple:
        item = typing.get_args(bare)[0]
        if not isinstance(value, (list, tuple)):
            defects.append(Defect(path, f"{show(value)} is not a list"))
            return ()
        return tuple(_value(item, each, f"{path}[{n}]", defects) for n, each in enumerate(value))
    if origin is not None:
        return _gates(value, path, defects)
    try:
        reader = next((extra for extra in extras if isinstance(extra, Reader)), None)
        read = reader.read(value) if reader is not None else _scalar(bare, value)
        if read or explicit or not empty_is_default(annotation):
            for extra in extras:
                if isinstance(extra, Check):
                    extra.check(read)
    except ValueError as error:
        defects.append(Defect(path, f"{show(value)} {error}"))
        return None
    return read


def _gates(value: object, path: str, defects: list[Defect]) -> dict[str, bool]:
    if not isinstance(value, dict):
        defects.append(Defect(path, f"{show(value)} is not a mapping"))
        return {}
    for name, each in value.items():
        if not isinstance(each, bool):
            defects.append(Defect(f"{path}.{name}", f"{show(each)} is not true or false"))
    return dict(value)


def _scalar(kind: type, value: object) -> object:
    """A value of exactly this kind: no number for text, no text for a number, as in Kubernetes."""
    if kind is bool and not isinstance(value, bool):
        raise ValueError("is not true or false")
    if kind is str and not isinstance(value, str):
        raise ValueError("is not text: put it in quotes")
    if kind is int and (not isinstance(value, int) or isinstance(value, bool) or value not in _INT32):
        raise ValueError("is not a whole number of 32 bits")
    return value


def split_annotation(annotation: Any) -> tuple[Any, tuple[object, ...]]:
    """Return the bare type of a field and the other parts of its annotation."""
    if typing.get_origin(annotation) is Annotated:
        bare, *extras = typing.get_args(annotation)
        return bare, tuple(extras)
    return annotation, ()


def empty_is_default(annotation: Any) -> bool:
    """Whether the empty value of the file stands for the default."""
    return any(isinstance(extra, EmptyIsDefault) for extra in split_annotation(annotation)[1])


def _is_omitted_if_empty(annotation: Any) -> bool:
    return any(isinstance(extra, EmptyIsNotWritten) for extra in split_annotation(annotation)[1])


def _plain(value: Any, annotation: Any) -> object:
    if isinstance(value, Section):
        return encode(value)
    if isinstance(value, tuple):
        item = typing.get_args(split_annotation(annotation)[0])[0]
        return [_plain(each, item) for each in value]
    if isinstance(value, (dict, types.MappingProxyType)):
        return dict(value)
    for extra in split_annotation(annotation)[1]:
        if isinstance(extra, Reader):
            return extra.print(value)
    return value
