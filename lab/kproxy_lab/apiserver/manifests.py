"""YAML and JSON manifests: several documents per file, v1 Lists, plain JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kproxy_lab.apiserver.errors import JSON

_SUFFIXES = (".yaml", ".yml", ".json")


class _Loader(yaml.CSafeLoader):
    """A safe loader that leaves timestamps as text, as Kubernetes' JSON has them."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: bytes | str) -> list[Any]:
    """Return every document that is not empty.

    Raises:
        ValueError: the text is not YAML.
    """
    try:
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def load_manifests(path: Path) -> Iterator[JSON]:
    """Yield the objects of a file, or of all manifest files of a directory in name order.

    Raises:
        ValueError: a file holds no YAML, or a document that is no object; the message names the file.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    for file in files:
        try:
            documents = parse_yaml(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        for document in documents:
            yield from _objects(document, file)


def _objects(document: Any, file: Path) -> Iterator[JSON]:
    match document:
        case {"kind": str(kind), "items": list(items)} if kind.endswith("List"):
            for item in items:
                yield from _objects(item, file)
        case dict():
            yield document
        case _:
            raise ValueError(f"{file}: a document is no object but {type(document).__name__}")
