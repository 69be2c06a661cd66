"""Output of the demo: sections, rows of small bars, and a spinner on terminals.

Every block is printed as soon as it is known, with columns of fixed width, so that a long run prints one
growing table, and its output can be written to a file.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from kproxy_lab.demo.changes import Measured
from kproxy_lab.demo.compare import Finding
from kproxy_lab.demo.expect import Topic
from kproxy_lab.demo.walk import Walked

PLAIN_WIDTH: Final = 112
WIDE: Final = 108
"""Columns from which on there is room for bars and addresses; 80 are enough for the rest."""
BAR: Final = 4
COLOURS: Final = ("cyan", "blue", "magenta", "yellow", "bright_cyan", "bright_magenta")


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The few characters beyond letters. `eighths` are bars of 1/8 to 8/8 of a cell."""

    held: str
    failed: str
    no_answer: str
    eighths: str
    dash: str
    blur: str
    arrow: str


UNICODE: Final = Glyphs("✓", "✗", "·", "▏▎▍▌▋▊▉█", "─", "±", "→")
ASCII: Final = Glyphs("ok", "!!", ".", "########", "-", "+-", "->")


class Screen:
    """Prints the parts of the demo, to stdout by default."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self.glyphs = UNICODE if self.console.encoding.lower().startswith("utf") else ASCII
        self.wide = self.console.width >= WIDE
        self._pods: tuple[str, ...] = ()
        self._colours: dict[str, str] = {}

    def section(self, title: str, note: str = "") -> None:
        """Print the heading of a part and a few sentences about it."""
        self.console.print()
        self.console.print(
            Rule(Text(title, style="bold"), align="left", characters=self.glyphs.dash, style="dim")
        )
        if note:
            self.say(note, style="dim")

    def say(self, text: str, *, style: str = "", indent: int = 2) -> None:
        """Print a sentence, wrapped at the width of the screen."""
        self.console.print(Padding(Text(text, style=style), (0, 0, 0, indent), expand=False))

    def verbatim(self, text: str, *, style: str = "", indent: int = 2) -> None:
        """Print a line to be copied: never wrapped, never interpreted."""
        line = Text(" " * indent + text, style=style)
        line.highlight_regex(r"KUBE-[A-Z]+(-[A-Z0-9]{16})?", "cyan")
        line.highlight_regex(r"--comment (\"[^\"]*\"|\S+)", "green")
        self.console.print(line, soft_wrap=True)

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[None]:
        """Show a spinner during the block, and a line with its duration in seconds after it."""
        began = time.monotonic()
        with self.busy(doing):
            yield
        line = Text.assemble(("  " + self.glyphs.held, "green"), f" {done}")
        line.append(f"  {time.monotonic() - began:.1f} s", style="dim")
        self.console.print(line)

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """A spinner with a text on a terminal, nothing elsewhere."""
        if not self.console.is_terminal:
            yield
            return
        spinner = "dots" if self.glyphs is UNICODE else "line"
        with self.console.status(Text(doing, style="dim"), spinner=spinner):
            yield

    def columns(self, pods: Sequence[str]) -> None:
        """Fix the pods' columns and print the head of the table of addresses."""
        self._name_pods(pods)
        table = self._address_grid()
        saw = "the pods saw" if self.wide else "saw"
        table.add_row(
            Text("address", "bold"), Text("asked from", "bold"), *self._heads(), Text(saw, "bold"), ""
        )
        self._print(table)

    def topic(self, topic: Topic, rows: Sequence[tuple[str, Finding]]) -> None:
        """A service: its name and traits, and a row for each address and asker."""
        self._heading(topic)
        table = self._address_grid()
        for asker, finding in rows:
            table.add_row(
                Text(
                    finding.question.address if self.wide else finding.question.address.removesuffix("/TCP")
                ),
                Text(asker),
                *self._shares(finding.counts, finding.question.answers, sticky=finding.question.sticky),
                self._sources(finding),
                self._mark(not finding.wrong),
            )
        self._print(table)
        for _, finding in rows:
            self.wrong(finding.wrong)

    def not_proxied(self, topic: Topic, reason: str, *, wrong: Sequence[str]) -> None:
        """A service without rules, and why that is right."""
        line = Text.assemble(
            (topic.service, "bold"), (f"   {topic.traits}: not proxied, by design; {reason}", "dim")
        )
        self.fact(line, wrong=wrong)

    def change_columns(self, pods: Sequence[str]) -> None:
        """Print the head of the table of changes; `pods` get the columns."""
        self._name_pods(pods)
        table = self._change_grid()
        titles = [Text(title, "bold") for title in ("change", "first packet", "synced", "failed")]
        table.add_row(*titles[:3], *(self._heads() if self.wide else ()), titles[3], "")
        self._print(table)

    def change(self, measured: Measured, expected: Sequence[str]) -> None:
        """A row: how long until the first packet obeyed and kproxy said so, and who answers since."""
        table = self._change_grid()
        table.add_row(
            Text(measured.change.title),
            _milliseconds(measured.obeyed, "bold", measured.blur, self.glyphs.blur),
            _milliseconds(measured.synced, "dim"),
            *(self._shares(measured.counts, expected) if self.wide else ()),
            Text(f"{measured.failed.total()} of {measured.asked}", "red" if measured.failed else "dim"),
            self._mark(not measured.wrong),
        )
        self._print(table)
        self.wrong(measured.wrong)

    def walk_columns(self, before: str, now: str) -> None:
        """Print the head of the table of the walk; the last two columns are outcomes."""
        table = self._walk_grid()
        titles = ("connection", "address", before, now) if self.wide else ("connection", before, now)
        table.add_row(*(Text(title, "bold") for title in titles), "")
        self._print(table)

    def walk(self, walked: Walked) -> None:
        """A row: one connection without and with policies, and if it is refused, why."""
        step = walked.step
        table = self._walk_grid()
        table.add_row(
            Text.assemble(step.source, (f" {self.glyphs.arrow} ", "dim"), step.target),
            *([Text(step.address, "dim")] if self.wide else ()),
            _outcome(walked.before),
            _outcome(walked.now),
            self._mark(not walked.wrong),
        )
        self._print(table)
        for reason in walked.reasons:
            self.say(reason, style="dim", indent=6)
        self.wrong(walked.wrong)

    def fact(self, text: Text | str, *, wrong: Sequence[str]) -> None:
        """A statement that was checked."""
        table = _grid()
        table.add_row(self._mark(not wrong), text)
        self._print(table)
        self.wrong(wrong)

    def wrong(self, reasons: Sequence[str]) -> None:
        """Print the expectations that did not hold."""
        for reason in reasons:
            self.say(f"{self.glyphs.failed} {reason}", style="red", indent=6)

    def _name_pods(self, pods: Sequence[str]) -> None:
        self._pods = tuple(pods)
        for name in pods:
            self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])

    def _heads(self) -> list[Text]:
        return [Text(name, style=f"bold {self._colours[name]}") for name in self._pods]

    def _heading(self, topic: Topic) -> None:
        self.console.print()
        self.console.print(Text.assemble("  ", (topic.service, "bold"), (f"   {topic.traits}", "dim")))

    def _address_grid(self) -> Table:
        table = _grid()
        table.add_column(width=24 if self.wide else 20, overflow="fold")
        table.add_column(width=12 if self.wide else 11, overflow="fold")
        self._add_pods(table)
        table.add_column(width=26 if self.wide else 5, overflow="fold")
        table.add_column(width=len(self.glyphs.held))
        return table

    def _change_grid(self) -> Table:
        table = _grid()
        table.add_column(width=22, overflow="fold")
        table.add_column(width=12, justify="right")
        table.add_column(width=7, justify="right")
        if self.wide:
            self._add_pods(table)
        table.add_column(width=9)
        table.add_column(width=len(self.glyphs.held))
        return table

    def _walk_grid(self) -> Table:
        table = _grid()
        table.add_column(width=42, overflow="fold")
        if self.wide:
            table.add_column(width=22, overflow="fold")
        table.add_column(width=16 if self.wide else 12, overflow="fold")
        table.add_column(width=16 if self.wide else 9, overflow="fold")
        table.add_column(width=len(self.glyphs.held))
        return table

    def _add_pods(self, table: Table) -> None:
        for _ in self._pods:
            table.add_column(width=BAR + 5 if self.wide else 8, no_wrap=True, overflow="crop")

    def _shares(self, counts: Counter[str], expected: Collection[str], *, sticky: bool = False) -> list[Text]:
        """Return a cell for each pod; with `sticky`, a pod without clients is no deviation."""
        total = counts.total()
        return [
            self._share(name, counts[name], total, expected=name in expected, sticky=sticky)
            for name in self._pods
        ]

    def _share(self, name: str, count: int, total: int, *, expected: bool, sticky: bool) -> Text:
        if not count and (sticky or not expected):
            return Text(self.glyphs.no_answer, style="dim")
        share = count / total if total else 0.0
        percent = Text(f"{share:>4.0%}", style="" if expected and count else "bold red")
        if not self.wide:
            return percent
        return Text.assemble((f"{bar(share, self.glyphs.eighths):<{BAR}}", self._colours[name]), " ", percent)

    def _sources(self, finding: Finding) -> Text:
        if not finding.question.answers:
            words = {"Refused": "refused at once" if self.wide else "no", "NoAnswer": "dropped"}
            return Text(", ".join(words.get(name, name) for name in finding.counts), style="dim")
        lines = Text()
        if not self.wide:
            both = [name for name, seen in (("own", finding.own), ("node", finding.node)) if seen]
            return Text("\n".join(both), style="dim")
        for label, style, addresses in (("own ", "green", finding.own), ("node", "yellow", finding.node)):
            shown = list(addresses)
            if len(shown) > 2:
                shown = [f"{shown[0]} and {len(shown) - 1} more"]
            for address in shown:
                lines.append("\n" if lines else "")
                lines.append(label, style=style)
                lines.append(f" {address}")
        return lines

    def _print(self, table: Table) -> None:
        self.console.print(Padding(table, (0, 0, 0, 2), expand=False))

    def _mark(self, held: bool) -> Text:
        return Text(self.glyphs.held, "green") if held else Text(self.glyphs.failed, "bold red")


def bar(share: float, eighths: str, cells: int = BAR) -> str:
    """A bar of up to `cells` characters in steps of an eighth, never empty for a share above zero."""
    steps = round(share * cells * 8)
    if share > 0:
        steps = max(steps, 1)
    full, rest = divmod(steps, 8)
    return eighths[-1] * full + (eighths[rest - 1] if rest else "")


def _grid() -> Table:
    return Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))


def _outcome(counts: Counter[str]) -> Text:
    if not counts:
        return Text("not asked", "dim")
    return Text("no answer", "yellow") if "NoAnswer" in counts else Text("answered", "green")


def _milliseconds(seconds: float | None, style: str, blur: float | None = None, sign: str = "") -> Text:
    if seconds is None:
        return Text("never", "bold red")
    text = Text(f"{seconds * 1000:.0f} ms", style)
    if blur is not None:
        text.append(f" {sign}{math.ceil(blur * 1000)}", "dim")
    return text


def _console() -> Console:
    plain = Console(highlight=False)
    if plain.is_terminal or "COLUMNS" in os.environ:
        return plain
    return Console(highlight=False, width=PLAIN_WIDTH)
