"""Where the pins of a socket table are: a process killed at any moment leaves what the next one understands.

    DIRECTORY/link-connect4 ...       links: what serves
    DIRECTORY/layout-1/asked          maps that all sets share
    DIRECTORY/layout-1/set-7/slots4   a set of maps

A set is pinned under another name and gets its own by one rename, once it is filled: the set with the highest
number is the last one that was published, or was about to be. Links take their programs with their maps, so
that they never depend on which set is found. Another layout of the maps' contents gets another number.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kproxy.kernel.bpf.elf import MapDeclaration
from kproxy.kernel.bpf.map_set import MapSet
from kproxy.kernel.bpf.pins import TEMPORARY, failed, identity, make_directory, pin, unpin_all
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Change, Problem

LAYOUT = 1
"""Number of the layout of keys and values in connect.c."""

_OWN = re.compile(rf"link-[a-z0-9]+({TEMPORARY})?|layout-\d+")
_SET = re.compile(r"set-(\d+)")


class Layout:
    """Paths of pins below a directory, and the identities of those that this process made or opened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._maps = directory / f"layout-{LAYOUT}"
        self._half_made = self._maps / "half-made"
        self._known: dict[Path, tuple[int, int] | None] = {}

    def link(self, name: str) -> Path:
        """The pin of a program's link."""
        return self.directory / f"link-{name}"

    def has_link(self, name: str) -> bool:
        """Whether a link of a program is pinned, which therefore may serve."""
        return identity(self.link(name)) is not None

    def shared(self, name: str) -> Path:
        """The pin of a map that all sets share."""
        return self._maps / name

    def adopt(self, declarations: Mapping[str, MapDeclaration], *, writable: bool = True) -> MapSet | None:
        """The last set that is whole, or None. Raises BpfError where the kernel does not say."""
        for path in self._sets():
            try:
                found = MapSet.adopt(declarations, path, writable=writable)
            except BpfError as error:
                if error.kind not in {BpfFailure.INTERRUPTED, BpfFailure.REFUSED}:
                    raise
                continue
            for name in found.descriptors:
                self.remember(path / name)
            return found
        return None

    def commit(self, maps: MapSet) -> None:
        """Pin a set under a number above all others, or repair the pins of one that has a number.

        Raises BpfError.
        """
        if maps.pins is not None and identity(maps.pins):
            for name, descriptor in maps.descriptors.items():
                self.ensure(descriptor, maps.pins / name)
            return
        unpin_all(self._half_made)
        make_directory(self._half_made)
        for name, descriptor in maps.descriptors.items():
            pin(descriptor, self._half_made / name)
        path = self._maps / f"set-{max(map(_number, self._sets()), default=0) + 1}"
        try:
            self._half_made.rename(path)
        except OSError as error:
            raise failed(path, error) from error
        if maps.pins is not None:
            self._forget(maps.pins)
        maps.pins = path
        for name in maps.descriptors:
            self.remember(path / name)

    def withdraw(self, maps: MapSet) -> None:
        """Undo `commit`. Raises BpfError."""
        if maps.pins is not None:
            unpin_all(maps.pins)
            self._forget(maps.pins)
            maps.pins = None

    def ensure(self, descriptor: int, path: Path) -> None:
        """Pin an object to a path unless it is there as this process left it. Raises BpfError."""
        if self._known.get(path) is None or self._known[path] != identity(path):
            make_directory(path.parent)
            pin(descriptor, path)
            self.remember(path)

    def remember(self, path: Path) -> None:
        """Take the object at a path for the one that belongs there."""
        self._known[path] = identity(path)

    def forget(self, path: Path) -> None:
        """Expect nothing at a path."""
        self._known.pop(path, None)

    def expect_only(self, maps: MapSet) -> None:
        """Expect no other set's pins."""
        sets = {path.parent for path in self._known if path.parent.parent == self._maps}
        for each in sets - {maps.pins}:
            self._forget(each)

    def problems(self) -> Iterator[Problem]:
        """Pins that are gone, or others in their places."""
        for path, wanted in self._known.items():
            found = identity(path)
            if found is None:
                yield Problem(f"pin {path}", Change.MISSING, "removed")
            elif found != wanted:
                yield Problem(f"pin {path}", Change.MODIFIED, "replaced by another")

    def has_any(self) -> bool:
        """Whether there are pins. Raises BpfError."""
        return bool(self._own())

    def sweep(self) -> None:
        """Remove pins of other sets and of half-made ones. Raises BpfError."""
        for path in self._own():
            _sweep(path, set(self._known))

    def remove(self) -> None:
        """Remove all pins, and the directory if nothing else is in it. Raises BpfError."""
        for path in self._own():
            unpin_all(path)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _own(self) -> list[Path]:
        """What this class made in the directory, links first; others may be beside it. Raises BpfError."""
        try:
            found = [path for path in self.directory.iterdir() if _OWN.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failed(self.directory, error) from error
        return sorted(found, key=lambda path: path.name, reverse=True)

    def _forget(self, directory: Path) -> None:
        self._known = {path: each for path, each in self._known.items() if path.parent != directory}

    def _sets(self) -> Iterator[Path]:
        """Directories of sets, the last one first. Raises BpfError."""
        try:
            found = [path for path in self._maps.iterdir() if _SET.fullmatch(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise failed(self._maps, error) from error
        yield from sorted(found, key=_number, reverse=True)


def _number(path: Path) -> int:
    found = _SET.fullmatch(path.name)
    return int(found[1]) if found else 0


def _sweep(path: Path, wanted: set[Path]) -> None:
    if path in wanted:
        return
    if not any(path in each.parents for each in wanted):
        unpin_all(path)
        return
    try:
        found = list(path.iterdir())
    except OSError as error:
        raise failed(path, error) from error
    for each in found:
        _sweep(each, wanted)
