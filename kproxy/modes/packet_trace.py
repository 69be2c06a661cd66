"""What became of real packets: the kernel's reports joined to the way of each, with the text of its rules."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping

import msgspec

from kproxy.addresses import Family, join_host_port
from kproxy.kernel.nft import ruleset
from kproxy.kernel.nft.describe import describe
from kproxy.kernel.nft.trace import LATE, Selection, TraceError, Tracer
from kproxy.kernel.nft.trace_events import Headers, TraceEvent
from kproxy.kernel.nft.trace_leftovers import StaleTraceError, remove_leftovers
from kproxy.kernel.nft.trace_logger import LoggerError
from kproxy.kernel.xtables.trace_log import LoggedStep
from kproxy.modes.legacy_trace import LegacyTrace
from kproxy.plan.outcomes import PacketVerdict

_QUIET = 0.5
"""Seconds without a report after which a packet that neither left nor was dropped counts as lost."""

_REJECTS = re.compile(r": (?:.* )?reject\b", re.IGNORECASE)
"""A rule that answers with an error: the kernel reports its verdict as drop."""

_MASQUERADES = re.compile(r": (?:.* )?masquerade\b", re.IGNORECASE)


class TracedPacket(msgspec.Struct, frozen=True):
    """A packet that was seen: the first headers, what became of it, and the rules on its way.

    `endpoint` is None unless the verdict is FORWARD. `reason` says why, for verdicts that need it.
    """

    headers: Headers
    verdict: PacketVerdict
    endpoint: str | None
    masquerade: bool
    steps: tuple[str, ...]
    reason: str = ""


class PacketTrace:
    """Follows packets in the calling thread's network namespace, until it is closed; see Tracer."""

    def __init__(self, selection: Selection, *, owned: bool = True) -> None:
        """Begin. Raises TraceError."""
        with contextlib.suppress(StaleTraceError):
            remove_leftovers()
        self._legacy = LegacyTrace(selection.family)
        try:
            self._tracer = Tracer(selection, owned=owned)
        except BaseException:
            self._legacy.close()
            raise
        self._own = f"{'ip' if selection.family is Family.IPV4 else 'ip6'} {self._tracer.table}"
        self._marking = selection.chain
        self._texts = _RuleTexts(selection.family)

    @property
    def lost(self) -> bool:
        """Whether the kernel could not report everything."""
        return self._tracer.lost or self._legacy.lost

    @property
    def unread(self) -> str:
        """Why the rules of legacy tables are not shown; "" if they are, or if there are none."""
        return self._legacy.unavailable

    def close(self) -> None:
        """Remove what tracing needed. Raises TraceError if a parameter cannot be restored."""
        try:
            self._tracer.close()
        finally:
            try:
                self._legacy.close()
            except LoggerError as error:
                raise TraceError(str(error)) from error

    def packets(self, count: int, seconds: float) -> Iterator[TracedPacket]:
        """Each packet when its way is known, at most `count`, seen within `seconds`. Raises OSError."""
        waiting: dict[int, list[TraceEvent]] = {}
        heard: dict[int, float] = {}
        begun = ended = 0
        for event in self._tracer.events(time.monotonic() + seconds):
            now = time.monotonic()
            if event is not None and event.packet in waiting:
                waiting[event.packet].append(event)
                heard[event.packet] = now
            elif event is not None and begun < count and self._begins(event):
                begun += 1
                waiting[event.packet], heard[event.packet] = [event], now
            for packet in [each for each, way in waiting.items() if self._is_over(way[-1])]:
                ended += 1
                yield self._joined(waiting.pop(packet))
            for packet in [each for each in waiting if now - heard[each] > _QUIET]:
                ended += 1
                yield self._joined(waiting.pop(packet))
            if ended >= count:
                return
        for way in waiting.values():
            yield self._joined(way)

    def _begins(self, event: TraceEvent) -> bool:
        mine = event.table == self._own and event.chain == self._marking
        return mine and event.kind == "rule" and event.headers is not None

    def _is_over(self, event: TraceEvent) -> bool:
        if event.verdict == "drop":
            return True
        return event.table == self._own and event.chain in {f"{LATE}input", f"{LATE}postrouting"}

    def _joined(self, way: list[TraceEvent]) -> TracedPacket:
        first = way[0].headers
        if first is None:
            raise ValueError("a packet begins with its headers")
        last = next(event.headers for event in reversed(way) if event.headers is not None)
        logged = self._legacy.take(first)
        end_of_legacy = self._legacy.verdict(logged[-1]) if logged else None
        steps = tuple(self._steps(way, logged))
        changed = (first.destination, first.port) != (last.destination, last.port)
        end = way[-1]
        if end.verdict == "drop":
            step = steps[-1] if steps else ""
            verdict = PacketVerdict.REJECT if _REJECTS.search(step) else PacketVerdict.DROP
            return TracedPacket(first, verdict, None, masquerade=False, steps=steps, reason=step)
        if not self._is_over(end) and end_of_legacy is not None:
            return TracedPacket(first, end_of_legacy, None, masquerade=False, steps=steps, reason=steps[-1])
        if not self._is_over(end):
            reason = (
                f"no report after {end.table} {end.chain}: routing, the reverse path filter or "
                "rules of a legacy table took the packet"
            )
            return TracedPacket(
                first, PacketVerdict.UNKNOWN, None, masquerade=False, steps=steps, reason=reason
            )
        endpoint = join_host_port(last.destination, last.port) if changed else None
        verdict = PacketVerdict.FORWARD if changed else PacketVerdict.UNTOUCHED
        masquerade = first.source != last.source or any(map(_MASQUERADES.search, steps))
        return TracedPacket(first, verdict, endpoint, masquerade=masquerade, steps=steps)

    def _steps(self, way: list[TraceEvent], logged: list[LoggedStep]) -> Iterator[str]:
        """Each rule and its verdict; where the headers have changed, the new ones.

        In a hook the rules of legacy tables come after those of nftables: their order is not reported.
        """
        known = way[0].headers
        for event in way:
            hook = event.chain.removeprefix(LATE) if event.table == self._own else ""
            yield from filter(None, (self._legacy.text(step) for step in logged if step.hook == hook))
            logged = [step for step in logged if step.hook != hook]
            if event.headers is not None and known is not None and event.headers != known:
                yield f"headers: {_changes(known, event.headers)}"
                known = event.headers
            if event.table == self._own:
                continue
            if event.kind == "rule" and event.handle:
                text = (
                    self._texts.of(event.table, event.chain, event.handle)
                    or f"rule with handle {event.handle}"
                )
                shown = text.endswith(event.verdict) or event.verdict == "continue"
                yield f"{event.table} {event.chain}: {text}" + ("" if shown else f" -> {event.verdict}")
            elif event.kind == "policy":
                yield f"{event.table} {event.chain}: policy {event.verdict or 'accept'}"
        yield from filter(None, map(self._legacy.text, logged))


class _RuleTexts:
    """The text of rules by their handles, which the kernel does not use again in a table."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._tables = self._read()

    def of(self, table: str, chain: str, handle: int) -> str:
        """The text of a rule; "" if it is gone. Raises OSError."""
        if handle not in self._handles(table, chain):
            self._tables = self._read()
        handles = self._handles(table, chain)
        if handle not in handles:
            return ""
        held = self._tables[table]
        keys = {name: each.key_length for name, each in held.sets.items()}
        return describe(held.chains[chain].rules[handles.index(handle)], keys)

    def _handles(self, table: str, chain: str) -> tuple[int, ...]:
        held = self._tables.get(table)
        return held.chains[chain].handles if held is not None and chain in held.chains else ()

    def _read(self) -> Mapping[str, ruleset.Table]:
        return {str(table): table for table in ruleset.read(self._family)}


def _changes(before: Headers, after: Headers) -> str:
    parts = []
    if (before.destination, before.port) != (after.destination, after.port):
        parts.append(f"destination {join_host_port(after.destination, after.port)}")
    if (before.source, before.source_port) != (after.source, after.source_port):
        parts.append(f"source {join_host_port(after.source, after.source_port)}")
    return ", ".join(parts)
