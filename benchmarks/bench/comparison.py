"""Compares two runs, of two commits, figure by figure: what became slower is visible at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.bench.machine import differences
from benchmarks.bench.report import number, size_of
from benchmarks.bench.results import FIGURES, MORE_IS_BETTER, OWN_FIGURES, Figure, Row, case
from benchmarks.bench.runs import BenchError, Run, described

LIMIT = 1.3
"""A figure so many times worse is a regression."""


@dataclass(frozen=True)
class Pair:
    """A figure in two runs. `ratio` is how many times worse the new one is; None if one was not measured."""

    figure: Figure
    old: float | None
    new: float | None
    ratio: float | None
    few: bool
    """Whether a quantile comes from so few samples that it is the greatest of them."""

    @property
    def worse(self) -> bool:
        """Whether it is a regression; so is a figure that was measured before only."""
        if self.old is not None and self.new is None:
            return True
        return self.ratio is not None and self.ratio > LIMIT and not self.few

    @property
    def mark(self) -> str:
        """What stands beside it in the table."""
        if self.old is not None and self.new is None:
            return "MISSING"
        if self.worse:
            return "SLOWER"
        if self.ratio is None:
            return ""
        if self.few and (self.ratio > LIMIT or self.ratio * LIMIT < 1):
            return "few samples"
        return "better" if self.ratio * LIMIT < 1 else ""


@dataclass(frozen=True)
class Case:
    """One contender at one size in both runs."""

    title: str
    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...] = ()


def compare(old: Run, new: Run) -> list[Case]:
    """Compare the rows that both runs have."""
    before = _by_identity(old.rows)
    return [
        _case(before[identity], row) for identity, row in _by_identity(new.rows).items() if identity in before
    ]


def worse(cases: Sequence[Case]) -> list[tuple[Case, Pair]]:
    """Return the regressions."""
    return [(each, pair) for each in cases for pair in each.pairs if pair.worse]


def show(old: Run, new: Run, console: Console) -> int:
    """Print a table of each case, what makes the runs unlike, and the regressions; returns their number.

    Raises BenchError if the runs have no case in common.
    """
    cases = compare(old, new)
    if not cases:
        raise BenchError("nothing to compare: no contender was measured at the same size in both runs")
    for each in cases:
        table = Table(title=each.title)
        for title in ("", "old", "new", "times worse", ""):
            table.add_column(title, justify="right" if title else "left")
        for pair in each.pairs:
            style = "bold red" if pair.worse else None
            times = "-" if pair.ratio is None else f"{pair.ratio:.2f}"
            table.add_row(
                pair.figure.title, number(pair.old), number(pair.new), times, pair.mark, style=style
            )
        console.print(table)
        for remark in each.remarks:
            console.print(f"{each.title}: {remark}")
    console.print(f"old: {described(old.source)}, {old.began}; new: {described(new.source)}, {new.began}")
    if differing := differences(old.machine, new.machine):
        console.print("[bold red]The machines differ, so the ratios say little about the program:[/]")
        for difference in differing:
            console.print(f"  {difference}", highlight=False)
    for identity in _by_identity(old.rows).keys() - _by_identity(new.rows).keys():
        contender, mode, services, endpoints = identity
        console.print(f"not in the new run: {contender} {mode} {services} x {endpoints}", highlight=False)
    found = worse(cases)
    for each, pair in found:
        ratio = "not measured" if pair.ratio is None else f"{pair.ratio:.2f} times worse"
        console.print(f"{pair.mark} {each.title}: {pair.figure.title}: {ratio}", highlight=False)
    figures = sum(len(each.pairs) for each in cases)
    console.print(
        f"{len(found)} of {figures} figures in {len(cases)} cases are more than {LIMIT} times worse"
    )
    return len(found)


def _case(old: Row, new: Row) -> Case:
    pairs = tuple(
        pair
        for figure in (*FIGURES, *OWN_FIGURES)
        if (pair := _pair(figure, old, new)).old is not None or pair.new is not None
    )
    remarks = [
        f"the runs differ in {name}: {old['plan'].get(name)}, {new['plan'].get(name)}"
        for name in sorted(old["plan"].keys() | new["plan"].keys())
        if old["plan"].get(name) != new["plan"].get(name)
    ]
    for which, row in (("old", old), ("new", new)):
        if "gave_up" in row:
            remarks.append(f"the {which} run gave up: {str(row['gave_up']).splitlines()[0]}")
    return Case(f"{new['contender']} {new['mode']} {size_of(new)}", pairs, tuple(remarks))


def _pair(figure: Figure, old: Row, new: Row) -> Pair:
    before, after = figure.of(old), figure.of(new)
    return Pair(figure, before, after, _ratio(figure, before, after), _few(figure, old) or _few(figure, new))


def _ratio(figure: Figure, old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return None
    before, after = max(old, figure.floor), max(new, figure.floor)
    if before <= 0 or after <= 0:
        return None
    return before / after if figure.key in MORE_IS_BETTER else after / before


def _few(figure: Figure, row: Row) -> bool:
    if figure.quantile is None or figure.quantile <= 0.5 or figure.of(row) is None:
        return False
    return figure.samples(row) * (1 - figure.quantile) < 1 - 1e-9


def _by_identity(rows: Sequence[Row]) -> Mapping[tuple[str, str, int, int], Row]:
    return {(row["contender"], *case(row)): row for row in rows}
