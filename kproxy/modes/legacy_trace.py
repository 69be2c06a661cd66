"""The rules of legacy tables that traced packets match, beside those of nftables."""

from collections import deque
from collections.abc import Sequence

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.nft.trace_events import Headers
from kproxy.kernel.nft.trace_logger import LoggerError
from kproxy.kernel.xtables.numbered_rules import NumberedRules
from kproxy.kernel.xtables.trace_log import LoggedStep, TraceLog
from kproxy.plan.outcomes import PacketVerdict

_MOST = 1024
"""Packets whose steps wait for the end of the packet; those of packets that are not followed wait in vain."""

_ORDER = {"raw": 0, "mangle": 1, "nat": 2, "filter": 3, "security": 4}
"""The order in which a packet passes the tables in a hook; where sources are translated, nat is the last."""

_NAT_LAST = frozenset({"input", "postrouting"})
_ENDS = {"DROP": PacketVerdict.DROP, "REJECT": PacketVerdict.REJECT}


class LegacyTrace:
    """Used by the thread that made it, in its network namespace, until `close`.

    `unavailable` says why the rules of existing tables cannot be shown; "" if they can, or if there are none.
    """

    def __init__(self, family: Family) -> None:
        self.unavailable = ""
        self._log: TraceLog | None = None
        self._waiting: deque[list[LoggedStep]] = deque(maxlen=_MOST)
        self._rules = NumberedRules(family)
        if generations.legacy_tables(family):
            try:
                self._log = TraceLog(family)
            except LoggerError as error:
                self.unavailable = str(error)

    @property
    def lost(self) -> bool:
        """Whether the kernel could not report everything."""
        return self._log is not None and self._log.lost

    def close(self) -> None:
        """Restore what was changed. Raises LoggerError."""
        if self._log is not None:
            self._log.close()

    def take(self, headers: Headers) -> list[LoggedStep]:
        """The steps of the packet that came with these headers, all of which have been reported."""
        for step in self._log.steps() if self._log is not None else ():
            self._add(step)
        found = next((steps for steps in self._waiting if _is_from(steps[0], headers)), None)
        if found is None:
            return []
        self._waiting.remove(found)
        return found

    def text(self, step: LoggedStep) -> str:
        """A step as `explain` shows it; "" for the end of a chain that is no rule."""
        where = f"{step.table} {step.chain}"
        match step.kind:
            case "rule":
                return f"{where}: {self._rules.rule(*_name(step)) or f'rule {step.number}'}"
            case "policy":
                return f"{where}: policy {self._rules.policy(step.table, step.chain).lower()}".rstrip()
        return ""

    def verdict(self, step: LoggedStep) -> PacketVerdict | None:
        """The verdict of a packet whose last step this is; None if the step does not end it."""
        if step.kind == "policy":
            return _ENDS.get(self._rules.policy(step.table, step.chain))
        words = self._rules.rule(*_name(step)).split()
        return _ENDS.get(words[words.index("-j") + 1]) if "-j" in words else None

    def _add(self, step: LoggedStep) -> None:
        """Add a step to those of its packet; one that cannot follow the last one begins another packet."""
        for steps in reversed(self._waiting):
            if _is_from(steps[-1], step.headers):
                if not _begins(step, steps):
                    steps.append(step)
                    return
                break
        self._waiting.append([step])


def _name(step: LoggedStep) -> tuple[str, str, int]:
    return step.table, step.chain, step.number


def _is_from(step: LoggedStep, headers: Headers) -> bool:
    """Whether they have one source, which is translated after the last rule only."""
    return (step.headers.source, step.headers.source_port) == (headers.source, headers.source_port)


def _begins(step: LoggedStep, before: Sequence[LoggedStep]) -> bool:
    """Whether a step is of another packet; one of the node for itself comes back after `output`."""
    if step.hook == before[-1].hook:
        return _place(step) < _place(before[-1])
    return step.hook == "output" or (step.hook == "prerouting" and before[0].hook != "output")


def _place(step: LoggedStep) -> int:
    if step.table == "nat" and step.hook in _NAT_LAST:
        return len(_ORDER)
    return _ORDER.get(step.table, 0)
