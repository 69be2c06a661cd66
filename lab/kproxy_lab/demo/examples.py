"""The manifests of the demo: where they are and what is in them, as plain JSON objects."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kproxy

Json = dict[str, Any]

SERVICE_NAME: Final = "kubernetes.io/service-name"
HEADLESS: Final = "service.kubernetes.io/headless"


class UnusableExamplesError(RuntimeError):
    """There are no manifests, or the lab cannot show them; `str()` gives the reason."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Objects in the order of files and documents."""

    directory: Path
    objects: tuple[Json, ...]

    @property
    def services(self) -> list[Json]:
        """The v1 Services."""
        return [obj for obj in self.objects if obj.get("kind") == "Service"]

    def slices(self, service: Json) -> list[Json]:
        """The EndpointSlices which a proxy uses for a service."""
        return [obj for obj in self.objects if _belongs(obj, service)]


def find(directory: Path | None = None) -> Path:
    """`directory`, or manifests/examples of the checkout this package was imported from, or of the cwd.

    Raises UnusableExamplesError.
    """
    if directory is not None:
        return directory
    places = [place / "manifests" / "examples" for place in (Path(kproxy.__file__).parents[1], Path.cwd())]
    for place in places:
        if place.is_dir():
            return place
    raise UnusableExamplesError(
        f"no example manifests in {' or '.join(map(str, places))}; name some with --manifests"
    )


def shown(path: Path) -> str:
    """Return a path as text, relative to the working directory if it is below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def load(directory: Path) -> Examples:
    """Read a directory. Raises UnusableExamplesError naming the file."""
    from kproxy_lab.apiserver.manifests import load_manifests

    try:
        found = Examples(directory, tuple(load_manifests(directory)))
    except (ValueError, OSError) as error:
        raise UnusableExamplesError(str(error)) from error
    if not found.services:
        raise UnusableExamplesError(f"there is no Service in {directory}")
    return found


def key(obj: Json) -> str:
    """`namespace/name`."""
    return f"{obj['metadata'].get('namespace', 'default')}/{obj['metadata']['name']}"


def with_endpoints(slices: Iterable[Json], change: Callable[[Json], list[Json]]) -> list[Json]:
    """Return copies of slices with other endpoints: `change` maps a slice to its new endpoints."""
    return [{**each, "endpoints": change(each)} for each in slices]


def _belongs(obj: Json, service: Json) -> bool:
    labels = obj.get("metadata", {}).get("labels") or {}
    return (
        obj.get("kind") == "EndpointSlice"
        and labels.get(SERVICE_NAME) == service["metadata"]["name"]
        and HEADLESS not in labels
        and obj["metadata"].get("namespace") == service["metadata"].get("namespace")
    )
