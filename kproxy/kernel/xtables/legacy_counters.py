"""Read rule counters of the legacy tables in this process, through python-iptables and libiptc.

At 5,000 services of 5 endpoints a reading takes 0.31 s of CPU time; iptables-legacy-save and parsing its 13
MB of text take 0.45 s (at 500 services: 27 ms and 43 ms), because only rules on the way to services are read.
libiptc is C code that gets structs from Python, so it is probed first in a process that may crash. Nothing
here constructs rules, matches or targets of python-iptables, whose layouts differ between versions, and
nothing is committed. The entries are the kernel's ABI (include/uapi/linux/netfilter/x_tables.h).
"""

import ctypes
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.malloc import trim
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.python_iptables import PythonIptablesError, is_installed, run_apart

_MATCH = struct.Struct("=H29sB")  # xt_entry_match: size, name, revision
_HEAD = {Family.IPV4: 112, Family.IPV6: 168}  # sizeof(ipt_entry), sizeof(ip6t_entry)
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


class CountedRule(NamedTuple):
    """A rule with its counters, `size` in bytes; `protocol` is tcp, udp, sctp or "", `comment` may be ""."""

    chain: str
    protocol: str
    comment: str
    target: str
    packets: int
    size: int


class LegacyCounters:
    """Reads one family's tables in the caller's network namespace. Raises PythonIptablesError.

    For one thread at a time.
    """

    def __init__(self, family: Family, runner: Runner | None = None) -> None:
        if not is_installed():
            raise PythonIptablesError("python-iptables is not installed")
        self._family = family
        self._runner = runner
        self._probed = False

    def read(self, table: str, start: Iterable[str], follow: Callable[[str], bool]) -> list[CountedRule]:
        """Return the rules of the chains `start`, and of those they jump to whose names `follow` accepts.

        A table that does not exist has no rules, and is not created.
        """
        if table not in generations.legacy_tables(self._family):
            return []
        if not self._probed:
            # The first reading is in a separate process, where a crash is harmless.
            run_apart(__name__, self._family.name, table, runner=self._runner)
            self._probed = True
        import iptc

        kind: Any = iptc.Table if self._family is Family.IPV4 else iptc.Table6
        opened = kind(table, autocommit=False)
        try:
            opened.refresh()
            return list(self._walk(opened, start, follow))
        except iptc.IPTCError as error:
            raise PythonIptablesError(f"libiptc: {error}") from error
        finally:
            opened.close()
            trim()  # libiptc frees 100 MB in small blocks for a big table, which glibc keeps

    def _walk(self, table: Any, start: Iterable[str], follow: Callable[[str], bool]) -> Iterator[CountedRule]:
        waiting = list(start)
        seen = set(waiting)
        while waiting:
            chain = waiting.pop()
            entry = table.first_rule(chain)
            while entry:
                target = _text(table.get_target(entry))
                if target not in seen and follow(target):
                    seen.add(target)
                    waiting.append(target)
                header = entry.ip if self._family is Family.IPV4 else entry.ipv6
                counters = entry.counters
                yield CountedRule(
                    chain,
                    _PROTOCOLS.get(header.proto, ""),
                    self._comment(entry),
                    target,
                    counters.pcnt,
                    counters.bcnt,
                )
                entry = table.next_rule(entry)

    def _comment(self, entry: Any) -> str:
        raw = ctypes.string_at(ctypes.addressof(entry), entry.target_offset)
        place = _HEAD[self._family]
        while place + _MATCH.size <= len(raw):
            size, name, _ = _MATCH.unpack_from(raw, place)
            if size < _MATCH.size:
                break
            if name.partition(b"\0")[0] == b"comment":
                return raw[place + _MATCH.size : place + size].partition(b"\0")[0].decode("utf-8", "replace")
            place += size
        return ""


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


def _dry_run(family: Family, table: str) -> None:
    counters = LegacyCounters(family)
    counters._probed = True  # noqa: SLF001 - this is the probe
    chains = ("KUBE-SERVICES", "KUBE-NODEPORTS")
    counters.read(table, chains, lambda name: name.startswith("KUBE-"))


if __name__ == "__main__":
    _dry_run(Family[sys.argv[1]], sys.argv[2])
