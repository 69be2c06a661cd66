"""The table of results per fault: on the terminal, and in a file that every run updates.

All faults in all modes take hours in a user-mode kernel, so they run in parts: a run replaces the lines of
the faults it injected and keeps the others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from tests.faults.bench import Counts

_NAMES = [field.name for field in fields(Counts)]
_HEADINGS = [name.replace("_", " ") for name in _NAMES]
_TOTALS = ("times", "requests", "failed", "late", "wrong", "exchanges", "cut")
_LONGEST = ("seconds", "grown_mb")

_INTRODUCTION = """\
# Results of fault injection

Made by `KPROXY_FAULTS=all KPROXY_KILLS=200 KPROXY_FAULTS_RESULTS=tests/faults/RESULTS.md .venv/bin/pytest
tests/faults -n 2`, in parts (`-k`, `-m ipvs`): each run replaces the lines of the faults it injected. IPVS
runs in a user-mode kernel, where a system call costs fifty times as much.

`times`: how often the fault was injected. `late`: answers after a second or more. `wrong`: answers of a pod
that never was an endpoint. `exchanges`: lines over connections that were open before the fault; `cut`: those
connections that ended. `syncs` and `seconds`: from the end of the fault until the kernel was found to hold
the state of a fresh sync, including that sync, on a busy machine. `grown mb`: growth of resident memory.
`costs`: what may fail because the fault itself removes rules; elsewhere nothing may fail or be cut, and
nothing did in a run that passed.
"""


def table(counts: Iterable[Counts]) -> Iterator[str]:
    """Yield a line of headings, then a line for each fault and mode, in columns."""
    rows = [_HEADINGS, *sorted(_row(each) for each in counts)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        head = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        rest = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*head, *rest])


def add_to(path: Path, counts: Iterable[Counts]) -> None:
    """Replace the lines of these faults and modes in a file of results, and update its totals."""
    known = _read(path) if path.exists() else {}
    known |= {(each.fault, each.mode): _row(each) for each in counts}
    rows = [known[key] for key in sorted(known)]
    parts = [_INTRODUCTION, *_markdown(_sums(rows)), "", *_markdown([_HEADINGS, *rows]), ""]
    path.write_text("\n".join(parts), encoding="utf-8")


def _row(counts: Counts) -> list[str]:
    return [str(value) for value in asdict(counts).values()]


def _read(path: Path) -> dict[tuple[str, str], list[str]]:
    """Return the lines of a file of results by fault and mode."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    begin = rows.index(_HEADINGS)
    return {(row[0], row[1]): row for row in rows[begin + 1 :]}


def _sums(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Yield totals for each mode and each value of `costs`."""
    yield ["mode", "costs", "faults", *_TOTALS, *(f"most {name.replace('_', ' ')}" for name in _LONGEST)]
    costs, mode = _NAMES.index("costs"), _NAMES.index("mode")
    for key in sorted({(row[mode], row[costs]) for row in rows}):
        some = [row for row in rows if (row[mode], row[costs]) == key]
        sums = [sum(int(row[_NAMES.index(name)]) for row in some) for name in _TOTALS]
        most = [max(float(row[_NAMES.index(name)]) for row in some) for name in _LONGEST]
        yield [*key, str(len(some)), *map(str, sums), *map(str, most)]


def _markdown(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if not number:
            yield "|" + "---|" * len(row)
