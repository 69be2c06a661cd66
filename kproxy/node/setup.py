"""Set the node parameters that kube-proxy sets at start: limits of connection tracking, and the OOM score.

Traffic does not depend on them, and they may be read-only in a container or a network namespace. So a failure
to set one is only a warning that names it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from kproxy.config.model import ConntrackSettings, ProxyConfig
from kproxy.kernel import sysctl

log = structlog.stdlib.get_logger(__name__)

CONNTRACK_MAX = "net/netfilter/nf_conntrack_max"
CONNTRACK_MAX_CAP = 1 << 20
"""The upper limit of entries derived from the number of cores (kube-proxy 1.36); `min` may exceed it."""

HASH_SIZE = "module/nf_conntrack/parameters/hashsize"
"""Buckets of the table, below /sys; four entries per bucket, as in kube-proxy."""

_SYS = Path("/sys")
_PROC_SYS = Path("/proc/sys")
_OOM = Path("/proc/self/oom_score_adj")


def set_up_node(config: ProxyConfig) -> None:
    """Set everything; failures are logged."""
    set_conntrack(config.conntrack)
    set_oom_score(config.oom_score_adj)


def set_conntrack(
    settings: ConntrackSettings, cores: int | None = None, *, proc: Path = _PROC_SYS, sys: Path = _SYS
) -> None:
    """Set the parameters of connection tracking below `proc`, and the size of its table below `sys`.

    `cores` None: the number of cores of this machine.
    """
    cores = cores or os.cpu_count() or 1
    for name, value in conntrack_sysctls(settings, cores):
        _ensure(name, value, proc)
    limit = conntrack_max(settings, cores)
    if limit is not None:
        _grow_table(limit // 4, sys)


def conntrack_max(settings: ConntrackSettings, cores: int) -> int | None:
    """Entries of the connection tracking table, as getConntrackMax of kube-proxy; None: do not change it."""
    if settings.max_per_core == 0:
        return None
    scaled = settings.max_per_core * cores
    return CONNTRACK_MAX_CAP if scaled > CONNTRACK_MAX_CAP else max(scaled, settings.min)


def conntrack_sysctls(settings: ConntrackSettings, cores: int) -> Iterator[tuple[str, int]]:
    """Parameters by their names below /proc/sys, with the values to set."""
    limit = conntrack_max(settings, cores)
    if limit is not None:
        yield CONNTRACK_MAX, limit
    for name, seconds in (
        ("tcp_timeout_established", settings.tcp_established_timeout),
        ("tcp_timeout_close_wait", settings.tcp_close_wait_timeout),
        ("udp_timeout", settings.udp_timeout),
        ("udp_timeout_stream", settings.udp_stream_timeout),
    ):
        if int(seconds) > 0:
            yield f"net/netfilter/nf_conntrack_{name}", int(seconds)
    if settings.tcp_be_liberal:
        yield "net/netfilter/nf_conntrack_tcp_be_liberal", 1


def set_oom_score(value: int, file: Path = _OOM) -> None:
    """Set this process's oom_score_adj, -1000 (never killed) to 1000; a refusal is a warning."""
    try:
        if file.read_text(encoding="ascii").strip() != str(value):
            file.write_text(str(value), encoding="ascii")
    except OSError as error:
        log.warning("oom_score_failed", name=str(file), value=value, reason=error.strerror or str(error))


def _ensure(name: str, value: int, root: Path) -> None:
    try:
        if sysctl.ensure(name, value, root):
            log.info("sysctl_set", name=name, value=value)
    except sysctl.SysctlError as error:
        log.warning("sysctl_failed", name=error.name, reason=error.reason)


def _grow_table(buckets: int, root: Path) -> None:
    try:
        if int(sysctl.read(HASH_SIZE, root)) >= buckets:
            return
        sysctl.ensure(HASH_SIZE, buckets, root)
    except sysctl.SysctlError as error:
        if not _has_grown(buckets, root):
            log.warning("sysctl_failed", name=error.name, reason=error.reason)


def _has_grown(buckets: int, root: Path) -> bool:
    """Whether the table has at least that size: the kernel rounds it up to whole pages."""
    try:
        return int(sysctl.read(HASH_SIZE, root)) >= buckets
    except sysctl.SysctlError:
        return False
