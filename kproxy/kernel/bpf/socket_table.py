"""The socket table in the kernel: maps, the programs over them, their links and pins.

Everything that serves is pinned, so that traffic flows while no process runs. One process at a time has a
table: it locks the directory of the pins.
"""

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

from kproxy.addresses import Family
from kproxy.kernel.bpf import links, programs
from kproxy.kernel.bpf import maps as kernel_maps
from kproxy.kernel.bpf.attachment import Attachment
from kproxy.kernel.bpf.elf import BpfObject
from kproxy.kernel.bpf.layout import Layout
from kproxy.kernel.bpf.links import open_directory
from kproxy.kernel.bpf.map_set import MapSet, close_all, open_map
from kproxy.kernel.bpf.pins import identity, make_directory, open_pin, require_bpffs, temporary
from kproxy.kernel.bpf.syscall import failure, kernel_release
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Capacity, Change, Problem, Sizes, SocketMaps

SETTINGS_MAP, _ASKED = "settings", "asked"
SHARED_MAPS = (SETTINGS_MAP, _ASKED)
"""Maps that stay when a set is replaced: sockets that are open would forget what they asked for."""
_COOKIE = struct.Struct("=Q")
_SO_NETNS_COOKIE = 71
_WITHOUT_MEMLOCK = (5, 11)
"""Since this release the memory of maps counts in the memory cgroup, not for RLIMIT_MEMLOCK."""


class KernelSocketTable:
    """`SocketTable` (types.py) over one cgroup and one directory of a bpffs."""

    def __init__(
        self, cgroup: Path, layout: Layout, content: BpfObject, present: MapSet, shared: Mapping[str, int]
    ) -> None:
        """For `open`, which knows how to make the parts. Raises BpfError."""
        self._attachment = Attachment(cgroup, layout)
        self._layout = layout
        self._object = content
        self._maps = present
        self._shared = dict(shared)
        self._fresh = present.pins is None
        self._published = False
        self._cookie = 0
        self._lock = -1
        self._programs: dict[str, int] = {}

    @classmethod
    def open(cls, cgroup: Path, pin_dir: Path, sizes: Sizes, netns_cookie: int = 0) -> "KernelSocketTable":
        """Adopt the maps that are pinned in a directory, or else make maps with these sizes.

        `cgroup` is the directory whose processes are served (cgroups.find_root). With `netns_cookie` only
        sockets of that network namespace are, as soon as this is published. The directory is made; it has to
        be on a bpffs. Raises BpfError, OCCUPIED if another process has the directory.
        """
        layout = Layout(pin_dir)
        require_bpffs(pin_dir)
        try:
            return cls._opened(cgroup, layout, sizes, netns_cookie)
        except BpfError as error:
            if error.kind is BpfFailure.OCCUPIED or not any(map(layout.has_link, programs.HOOKS)):
                raise
            message = f"{error.message}; programs of a former process are attached, with its maps"
            raise BpfError(error.kind, message, error.code) from error

    @classmethod
    def _opened(cls, cgroup: Path, layout: Layout, sizes: Sizes, cookie: int) -> "KernelSocketTable":
        content = programs.connect_object()
        make_directory(layout.directory)
        _raise_memory_limit()
        with contextlib.ExitStack() as undo:
            lock = _lock(layout.directory)
            undo.callback(os.close, lock)
            present = layout.adopt(content.maps) or MapSet.make(content.maps, sizes)
            undo.callback(present.close)
            shared = _shared_maps(content, layout)
            undo.callback(close_all, shared)
            table = cls(cgroup, layout, content, present, shared)
            undo.pop_all()
        table._lock, table._cookie = lock, cookie
        return table

    @property
    def fresh(self) -> bool:
        """Whether opening made new, empty maps."""
        return self._fresh

    @property
    def published(self) -> bool:
        """Whether `publish` has succeeded over the present maps, in this process."""
        return self._published

    @property
    def sizes(self) -> Sizes:
        """The room of the present maps."""
        return self._maps.sizes

    def capacity(self, family: Family) -> Capacity:
        """The room of one family's maps."""
        return self._maps.capacity(family)

    def frontends(self, family: Family) -> dict[bytes, bytes]:
        """All frontends: values by keys. Raises BpfError."""
        return self._maps.frontends(family)

    def write_frontends(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace frontends one by one, in order. Raises BpfError, FULL without room."""
        self._maps.write_frontends(family, frontends)

    def delete_frontends(self, family: Family, keys: Collection[bytes]) -> None:
        """Delete frontends one by one. Raises BpfError."""
        self._maps.delete_frontends(family, keys)

    def fill(self, family: Family, frontends: Mapping[bytes, bytes]) -> None:
        """Add or replace many frontends in few calls. Raises BpfError; then some are written."""
        self._maps.fill(family, frontends)

    def slots(self, family: Family) -> memoryview:
        """The slots of the present maps as words of memory."""
        return self._maps.slots(family)

    def connections(self, count: int) -> list[int]:
        """The first `count` counters. Raises BpfError."""
        return self._maps.connections(count)

    def grow(self, sizes: Sizes) -> MapSet:
        """Make another set of maps, which nothing uses yet. Raises BpfError."""
        return MapSet.make(self._object.maps, sizes, counters=self._maps)

    def publish(self, maps: SocketMaps | None = None) -> None:
        """Make `maps` of `grow`, or the present maps, those that serve. Raises BpfError; see SocketTable."""
        target = self._maps if maps is None else maps
        if not isinstance(target, MapSet):
            raise TypeError("maps of another table")
        is_new = target is not self._maps
        if is_new and not self._published and any(map(self._layout.has_link, programs.HOOKS)):
            self.publish()  # so that the links can be put back if the new set fails
        loaded = self._programs if self._programs and not is_new else self._load(target)
        try:
            self._pin_and_attach(target, loaded, is_new=is_new)
        except BpfError:
            if loaded is not self._programs:
                close_all(loaded)
            if is_new:
                with contextlib.suppress(BpfError):
                    self._layout.withdraw(target)
            raise
        if loaded is not self._programs:
            close_all(self._programs)
            self._programs = loaded
        if is_new:
            self._layout.expect_only(target)
            self._maps.close()
            self._maps = target
        self._published = True
        # What is left serves nothing; the next publication removes it.
        with contextlib.suppress(BpfError):
            self._layout.sweep()

    def problems(self) -> list[Problem]:
        """Differences from what `publish` makes. Raises BpfError."""
        found = [*self._attachment.problems(self._programs), *self._layout.problems()]
        cookie = kernel_maps.read_element(SETTINGS_MAP, self._shared[SETTINGS_MAP], 0, _COOKIE.size)
        if _COOKIE.unpack(cookie) != (self._cookie,):
            detail = f"network namespace {_COOKIE.unpack(cookie)[0]} instead of {self._cookie}"
            found.append(Problem(f"map {SETTINGS_MAP}", Change.MODIFIED, detail))
        return found

    def remove(self) -> None:
        """Detach the programs and remove all pins; then close. Raises BpfError."""
        try:
            with contextlib.suppress(BpfError):
                self._attachment.detach()
            self._layout.remove()
        finally:
            self.close()

    def close(self) -> None:
        """Close everything; what is published serves on."""
        self._maps.close()
        self._attachment.close()
        close_all({**self._shared, **self._programs, "lock": self._lock})
        self._shared, self._programs, self._lock = {}, {}, -1
        self._published = False

    def _load(self, target: MapSet) -> dict[str, int]:
        over = {**self._shared, **target.descriptors}
        loaded: dict[str, int] = {}
        try:
            for name in programs.HOOKS:
                loaded[name] = programs.load(name, self._object.programs[name], over)
        except BpfError:
            close_all(loaded)
            raise
        return loaded

    def _pin_and_attach(self, target: MapSet, loaded: Mapping[str, int], *, is_new: bool) -> None:
        """The order matters: what a program refers to is pinned before the program serves."""
        make_directory(self._layout.directory)
        self._lock = _lock(self._layout.directory, self._lock)
        descriptor = self._shared[SETTINGS_MAP]
        kernel_maps.write_element(SETTINGS_MAP, descriptor, 0, _COOKIE.pack(self._cookie))
        for name in SHARED_MAPS:
            self._layout.ensure(self._shared[name], self._layout.shared(name))
        self._layout.commit(target)
        if is_new:
            target.take_counts(self._maps)
        self._attachment.attach(loaded, before=self._programs)


def open_published(pin_dir: Path) -> MapSet:
    """The maps that a process has published, for reading only, without its lock.

    Raises BpfError, INTERRUPTED if there are none.
    """
    require_bpffs(pin_dir)
    found = Layout(pin_dir).adopt(programs.connect_object().maps, writable=False)
    if found is None:
        raise BpfError(BpfFailure.INTERRUPTED, f"{pin_dir}: no maps are pinned")
    return found


def is_in_use(pin_dir: Path) -> bool:
    """Whether a process has the table of a directory open. Raises BpfError."""
    if not pin_dir.is_dir():
        return False
    try:
        os.close(_lock(pin_dir))
    except BpfError as error:
        if error.kind is BpfFailure.OCCUPIED:
            return True
        raise
    return False


def remove_published(pin_dir: Path) -> bool:
    """Detach the programs that a process has published and remove all pins, without its lock.

    For clean-up, and for a process that cannot open the table: programs must not serve from maps that no
    process keeps up to date. Returns whether there was anything. Raises BpfError.
    """
    layout = Layout(pin_dir)
    if not layout.has_any():
        return False
    require_bpffs(pin_dir)
    for path in map(layout.link, programs.HOOKS):
        for each in (path, temporary(path)):
            with contextlib.suppress(BpfError):
                link = open_pin(each)
                try:
                    links.detach(link, each.name)
                finally:
                    os.close(link)
    layout.remove()
    return True


def network_namespace_cookie() -> int:
    """The number of this thread's network namespace that programs see. Raises BpfError, before Linux 5.14."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            return int(_COOKIE.unpack(asked.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size))[0])
    except OSError as error:
        reason = f"the kernel does not give the cookie of a network namespace: {error.strerror}"
        raise BpfError(BpfFailure.MISSING, reason, error.errno or 0) from error


def _shared_maps(content: BpfObject, layout: Layout) -> dict[str, int]:
    """The maps that all sets share: pinned ones, or new ones. Raises BpfError."""
    found: dict[str, int] = {}
    try:
        for name in SHARED_MAPS:
            path, declaration = layout.shared(name), content.maps[name]
            layout.remember(path)
            try:
                found[name] = open_map(name, declaration, path)
            except BpfError as error:
                layout.forget(path)
                if error.kind not in {BpfFailure.INTERRUPTED, BpfFailure.REFUSED}:
                    raise
                found[name] = kernel_maps.create(name, declaration, declaration.entries)
    except BpfError:
        close_all(found)
        raise
    return found


def _lock(directory: Path, held: int | None = None) -> int:
    """A descriptor that locks the directory until it is closed, or the process ends.

    `held` is that of a former call; it is closed if another directory is at the path now. Raises BpfError.
    """
    if held is not None:
        found = os.fstat(held)
        if (found.st_dev, found.st_ino) == identity(directory):
            return held
    descriptor = open_directory(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            reason = f"{directory}: another process has its maps and programs there"
            raise BpfError(BpfFailure.OCCUPIED, reason, error.errno) from error
        raise failure(error.errno or errno.EIO, f"locking {directory}") from error
    if held is not None:
        os.close(held)
    return descriptor


def _raise_memory_limit() -> None:
    """Older kernels count maps as locked memory; a refusal shows when a map is made."""
    if kernel_release() < _WITHOUT_MEMLOCK:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
