"""The lists of clients that iptables' match `recent` keeps, with the time since each was last seen.

/proc/net/xt_recent has a file for each list (net/netfilter/xt_recent.c); times in it are the kernel's ticks,
whose number and rate /proc/timer_list shows.
"""

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_LISTS = Path("/proc/thread-self/net/xt_recent")
_TIMERS = Path("/proc/timer_list")
_ENTRY = re.compile(r"src=(\S+) ttl: \S+ last_seen: (\d+)")
_NOW = re.compile(r"^now at (\d+) nsecs", re.MULTILINE)
_TICKS = re.compile(r"^jiffies: (\d+)", re.MULTILINE)
_RATES = (100, 250, 300, 1000)  # kernel/Kconfig.hz
_SPAN = 1 << 32


def clients(lists: Path = _LISTS, timers: Path = _TIMERS) -> Mapping[str, Mapping[str, float]]:
    """Seconds since each client was seen, by list and address; 0 where the kernel hides its time."""
    try:
        paths = sorted(lists.iterdir())
    except OSError:
        return {}
    if not paths:
        return {}
    ticks, rate = _time(timers)
    return {path.name: dict(_entries(path, ticks, rate)) for path in paths}


def _entries(path: Path, ticks: int | None, rate: int) -> Iterator[tuple[str, float]]:
    with contextlib.suppress(OSError):
        for address, seen in _ENTRY.findall(path.read_text(encoding="ascii")):
            ago = 0.0 if ticks is None else max(0.0, (ticks - int(seen)) / rate)
            yield str(ipaddress.ip_address(address)), ago


def _time(timers: Path) -> tuple[int | None, int]:
    """The kernel's ticks and their rate; they begin at 300 seconds before 2**32 (INITIAL_JIFFIES)."""
    try:
        text = timers.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None, 1
    now, ticks = _NOW.search(text), _TICKS.search(text)
    if now is None or ticks is None:
        return None, 1
    seconds = int(now[1]) / 1e9
    found = min(_RATES, key=lambda rate: abs(_SPAN + (seconds - 300) * rate - int(ticks[1])))
    return int(ticks[1]), found
