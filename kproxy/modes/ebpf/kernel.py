"""The kernel's side of the socket table: how it is opened, and how what a former process left is removed."""

import contextlib
from pathlib import Path

import msgspec
import structlog

from kproxy.backends.ebpf.shared import FIRST_SIZES
from kproxy.config.model import ProxyConfig
from kproxy.kernel.bpf.cgroups import cgroup2_mounts, find_root
from kproxy.kernel.bpf.layout import LAYOUT, Layout
from kproxy.kernel.bpf.socket_table import (
    KernelSocketTable,
    is_in_use,
    network_namespace_cookie,
    remove_published,
)
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Change, SocketTable

log = structlog.stdlib.get_logger(__name__)

_MOUNTS = Path("/proc/self/mountinfo")
_OWN_CGROUP = Path("/proc/self/cgroup")


class TableSettings(msgspec.Struct, frozen=True):
    """Where the table is and whom it serves; see `ebpf` of kproxy's document."""

    cgroup_root: str = ""
    pin_directory: str = "/sys/fs/bpf/kproxy"
    host_namespace_only: bool = False

    @property
    def pins(self) -> Path:
        """The directory of the pins."""
        return Path(self.pin_directory)


def table_settings(config: ProxyConfig) -> TableSettings:
    """The settings of the table."""
    return TableSettings(config.ebpf_cgroup_root, config.ebpf_pin_directory, config.ebpf_host_namespace_only)


def open_table(settings: TableSettings) -> SocketTable:
    """Open the table, or make it. Raises BpfError, OCCUPIED if programs of others are on the hooks."""
    cookie = network_namespace_cookie() if settings.host_namespace_only else 0
    table = KernelSocketTable.open(find_root(settings.cgroup_root), settings.pins, FIRST_SIZES, cookie)
    try:
        reason = foreign_programs(table)
    except BpfError:
        table.close()
        raise
    if reason is None:
        return table
    table.remove()
    raise BpfError(BpfFailure.OCCUPIED, reason)


def foreign_programs(table: SocketTable) -> str | None:
    """The programs of others on the hooks, in words; None if there are none. Raises BpfError.

    They translate addresses of services too, such as Cilium's and Calico's, or those of another kproxy.
    """
    found = [
        f"{each.object.removeprefix('hook ')} ({each.detail})"
        for each in table.problems()
        if each.object.startswith("hook ") and each.change is Change.UNEXPECTED
    ]
    if not found:
        return None
    return f"programs of others, such as Cilium's, Calico's or another kproxy's, are at {', '.join(found)}"


def remove_table(directory: Path) -> bool:
    """Remove the pins of a table that no process has open; False if that failed, which is logged.

    Connections that began by the table are not affected.
    """
    try:
        if is_in_use(directory):
            log.info("socket_table_kept", directory=str(directory), reason="a process has it open")
        elif remove_published(directory):
            log.info("removed", socket_table=str(directory))
    except BpfError as error:
        log.error("cleanup_failed", socket_table=str(directory), reason=error.message)
        return False
    return True


def known_tables(mounts: Path = _MOUNTS) -> tuple[Path, ...]:
    """The directories with pins of a table on every bpffs that this process sees, two levels deep."""
    found: dict[Path, None] = {}
    with contextlib.suppress(OSError, BpfError):
        for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            fields, _, rest = line.partition(" - ")
            if rest.startswith("bpf "):
                root = Path(fields.split(" ")[4])
                found |= dict.fromkeys(
                    each
                    for each in (*root.glob("*/"), *root.glob("*/*/"))
                    if each.name != f"layout-{LAYOUT}" and Layout(each).has_any()
                )
    return tuple(found)


def serves_this_process(settings: TableSettings) -> bool:
    """Whether sockets of this process are below the configured cgroup, so that it can try the table."""
    if not settings.cgroup_root:
        return True
    root = Path(settings.cgroup_root)
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        own = next((Path(line.removeprefix("0::")) for line in lines if line.startswith("0::")), None)
        mount = next((each for each in cgroup2_mounts() if root.is_relative_to(each.path)), None)
    except (OSError, BpfError):
        return True
    if own is None or mount is None or not own.is_relative_to(mount.root):
        return True
    path = mount.path / own.relative_to(mount.root)
    return any(each.exists() and each.samefile(root) for each in (path, *path.parents))
