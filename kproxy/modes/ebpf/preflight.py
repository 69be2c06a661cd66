"""Probes of `kproxy check` for the eBPF mode: those of the nftables mode, and what the socket table needs.

What the socket table lacks is a warning only: the nftables table serves every service without it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.kernel.bpf import links, maps, programs
from kproxy.kernel.bpf.cgroups import find_root
from kproxy.kernel.bpf.layout import Layout
from kproxy.kernel.bpf.map_set import MapSet, close_all
from kproxy.kernel.bpf.pins import open_pin, require_bpffs
from kproxy.kernel.bpf.socket_table import SHARED_MAPS, network_namespace_cookie
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Capacity, Sizes
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.ebpf.kernel import TableSettings, table_settings
from kproxy.modes.findings import Finding, ok, warning
from kproxy.modes.nftables import preflight as of_table

_SIZES = Sizes(Capacity(1, 1), Capacity(1, 1), 1)
_SERVED = "services are served by the nftables table without it"


def check(config: ProxyConfig, variants: Mapping[Family, Variant]) -> Iterator[Finding]:
    """Probe everything; nothing is attached, pinned or left."""
    yield from of_table.check(config, variants)
    settings = table_settings(config)
    yield from _probed("cgroup2", lambda: _cgroup(settings), "mount the node's /sys/fs/cgroup (hostPath)")
    yield from _probed("bpffs", lambda: _bpffs(settings.pins), "mount the node's /sys/fs/bpf (hostPath)")
    yield from _probed("BPF programs", _programs, "grant CAP_BPF and CAP_NET_ADMIN, or use a newer kernel")
    remedy = "let only one program translate the addresses of services on this node"
    yield from _probed("BPF hooks", lambda: _hooks(settings), remedy)
    if settings.host_namespace_only:
        yield from _probed("network namespace", _cookie, "use Linux 5.14 or newer")


def _probed(subject: str, probe: Callable[[], str], remedy: str) -> Iterator[Finding]:
    try:
        yield ok(subject, probe())
    except BpfError as error:
        yield warning(subject, f"no socket table: {error.message}; {_SERVED}", remedy)


def _cgroup(settings: TableSettings) -> str:
    return f"programs can be at {find_root(settings.cgroup_root)}"


def _bpffs(directory: Path) -> str:
    require_bpffs(directory)
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    if os.statvfs(existing).f_flag & os.ST_RDONLY or not os.access(existing, os.W_OK):
        raise BpfError(BpfFailure.MISSING, f"{existing} is read-only")
    return f"pins can be in {directory}"


def _programs() -> str:
    """Make the maps and load the programs, for a moment."""
    content = programs.connect_object()
    shared: dict[str, int] = {}
    loaded: dict[str, int] = {}
    made = MapSet.make(content.maps, _SIZES)
    try:
        for name in SHARED_MAPS:
            shared[name] = maps.create(name, content.maps[name], content.maps[name].entries)
        for name in programs.HOOKS:
            loaded[name] = programs.load(name, content.programs[name], {**shared, **made.descriptors})
    finally:
        close_all({**shared, **loaded})
        made.close()
    return "the kernel takes the maps and programs of the socket table"


def _hooks(settings: TableSettings) -> str:
    """Whether programs of others are on the hooks; those that are pinned as kproxy's are its own."""
    root, layout = find_root(settings.cgroup_root), Layout(settings.pins)
    own = set(filter(None, (_pinned(layout.link(name)) for name in programs.HOOKS)))
    for name, hook in programs.HOOKS.items():
        for number in links.hook_programs(root, hook).programs:
            if number not in own:
                reason = f"program {number} of another is at {name} of {root}, such as Cilium's or Calico's"
                raise BpfError(BpfFailure.OCCUPIED, reason)
    return f"no program of others is at {root}"


def _pinned(path: Path) -> int | None:
    """The number of the program of a pinned link."""
    with contextlib.suppress(BpfError):
        link = open_pin(path)
        try:
            return links.link_info(link).program
        finally:
            os.close(link)
    return None


def _cookie() -> str:
    return f"this one has the cookie {network_namespace_cookie()}"
