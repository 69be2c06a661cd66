"""Compare packets that were traced with what `kproxy explain` says of them, and print both."""

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from kproxy.addresses import join_host_port
from kproxy.inspect.explain.question import OUTSIDE, Question
from kproxy.inspect.explain.report import AGREES, CANNOT_TELL, DIFFERS, REFUSALS, REFUSED, Report, Way
from kproxy.kernel.nft.trace import Selection
from kproxy.modes.packet_trace import TracedPacket
from kproxy.plan.outcomes import PacketVerdict, Where
from kproxy.text import clean_all, clean_lines

_WORDS = {
    PacketVerdict.REJECT: "refused",
    PacketVerdict.DROP: "dropped",
    PacketVerdict.UNTOUCHED: "passes: no address was translated",
    PacketVerdict.UNKNOWN: "unknown",
}


class Walk(msgspec.Struct, frozen=True, rename="camel"):
    """One packet: what became of it, and its rules. `agrees` is None if explain or the trace cannot tell.

    `source` and `destination` are those with which it came.
    """

    source: str
    destination: str
    verdict: PacketVerdict
    endpoint: str | None
    masquerade: bool
    steps: tuple[str, ...]
    agrees: bool | None
    reason: str | UnsetType = UNSET

    def text(self, number: int) -> str:
        """The packet on the screen: what became of it, and then each rule."""
        return clean_lines("\n".join(self._lines(number)), 4096) + "\n"

    def _lines(self, number: int) -> Iterator[str]:
        words = {True: "as explained", False: "DIFFERS from what is explained", None: "cannot be compared"}
        end = self.endpoint or _WORDS[self.verdict]
        masquerade = ", masqueraded" if self.masquerade and self.endpoint else ""
        yield f"packet {number}  {self.source} → {self.destination}  {end}{masquerade}  {words[self.agrees]}"
        yield from (f"  {step}" for step in self.steps)
        if self.verdict is PacketVerdict.UNKNOWN and isinstance(self.reason, str):
            yield f"  {self.reason}"
        if not any(not step.startswith("headers") for step in self.steps):
            yield "  no rule that the kernel reports matched; it reports none of legacy tables"


class TraceReport(msgspec.Struct, frozen=True, rename="camel"):
    """What `kproxy trace -o json` prints: the explanation and the packets; `lost`: some reports were lost."""

    explain: Report
    packets: tuple[Walk, ...]
    lost: bool = False

    @property
    def exit_code(self) -> int:
        """As that of explain; 1 also if no packet was seen."""
        if any(each.agrees is False for each in self.packets) or (self.packets and self.explain.differences):
            return DIFFERS
        if not self.packets or any(each.agrees is None for each in self.packets):
            return CANNOT_TELL
        return REFUSED if all(each.verdict in REFUSALS for each in self.packets) else AGREES

    def json(self) -> bytes:
        """The report as JSON, indented."""
        return msgspec.json.format(msgspec.json.encode(clean_all(msgspec.to_builtins(self))), indent=2)


def selection(question: Question, report: Report) -> Selection:
    """The packets that a question is about. `outside` and `node` stand for any address there."""
    packet = report.packet
    anyone = question.source == OUTSIDE or packet.where is Where.NODE
    return Selection(
        packet.family,
        packet.protocol.value,
        "" if anyone else packet.source,
        packet.destination,
        packet.port,
        from_node=packet.where is Where.NODE,
    )


def compared(packet: TracedPacket, report: Report, question: Question) -> Walk:
    """A traced packet, and whether it is one of the ways that the kernel's rules explain."""
    headers = packet.headers
    destination = join_host_port(headers.destination, headers.port)
    ways = (report.actual or report.desired).outcomes
    verdict, endpoint = packet.verdict, packet.endpoint
    if verdict is PacketVerdict.UNTOUCHED and any(way.endpoint == destination for way in ways):
        verdict, endpoint = PacketVerdict.FORWARD, destination
    walk = Walk(
        join_host_port(headers.source, headers.source_port),
        destination,
        verdict,
        endpoint,
        packet.masquerade,
        packet.steps,
        None,
        packet.reason or UNSET,
    )
    exactly = question.source != OUTSIDE and report.source.where is not Where.NODE
    return msgspec.structs.replace(walk, agrees=_agrees(walk, ways, exactly=exactly))


def _agrees(walk: Walk, ways: Sequence[Way], *, exactly: bool) -> bool | None:
    """Whether it is one of the ways; with `exactly`, also in whether the source is masqueraded.

    That depends on the client's address, and for one of the node it need not change anything.
    """
    if walk.verdict is PacketVerdict.UNKNOWN:
        return None
    for way in ways:
        if (way.verdict, way.endpoint) == (walk.verdict, walk.endpoint):
            forwards = way.verdict is PacketVerdict.FORWARD
            if not (exactly and forwards) or way.masquerade == walk.masquerade:
                return True
    return None if any(way.verdict is PacketVerdict.UNKNOWN for way in ways) else False
