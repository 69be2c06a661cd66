"""Where the tests write objects: the lab's API server, or a directory of manifests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from kproxy_lab.apiserver import ApiServer
from tests.policy.objects import JSON, Key


class Writer(Protocol):
    """Writes objects that a kproxy reads."""

    fences: int
    """How many barriers one after the other show that everything written before the first has been read."""

    def write(self, objects: Mapping[Key, JSON | None]) -> None:
        """Create or replace objects, in this order; None deletes one."""
        ...

    def flags(self) -> list[str]:
        """The flags of `kproxy run` that name the source."""
        ...


class ApiWriter:
    """Writes to an API server that is reached from the node, at once and in order within each kind."""

    fences = 1

    def __init__(self, api: ApiServer, kubeconfig: Path) -> None:
        self.api = api
        self._kubeconfig = api.kubeconfig(kubeconfig)

    def write(self, objects: Mapping[Key, JSON | None]) -> None:
        for (kind, namespace, name), obj in objects.items():
            if obj is None:
                self.api.delete(kind, namespace, name)
            else:
                # Policies that no API server would accept are part of the table.
                self.api.apply(obj, validate=kind != "NetworkPolicy")

    def flags(self) -> list[str]:
        return ["--kubeconfig", str(self._kubeconfig)]


class ManifestWriter:
    """Writes a file for each object. A scan may see only some files of a burst, hence two fences."""

    fences = 2

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)

    def write(self, objects: Mapping[Key, JSON | None]) -> None:
        for key, obj in objects.items():
            path = self._directory / ("_".join(each or "-" for each in key).lower() + ".yaml")
            if obj is None:
                path.unlink(missing_ok=True)
                continue
            new = self._directory / ".new"
            new.write_text(json.dumps(obj), encoding="utf-8")
            new.rename(path)

    def flags(self) -> list[str]:
        return ["--manifests", str(self._directory)]
