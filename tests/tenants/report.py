"""The table of attacks: on the terminal, and in a file of results that every run updates.

The file has a row for each attack and mode. The columns `before` hold the figures of the version that the
issue describes (KPROXY_TENANTS_COLUMN=before); later runs keep them and replace the others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from tests.tenants.rig import Counts
from tests.tenants.selection import REFERENCE

_HEADINGS = [field.name.replace("_", " ") for field in fields(Counts)]
_SHOWN = (
    "usual", "median", "p99", "most", "lost", "cpu", "before_mb", "peak_mb", "log_kb", "events", "unwell",
    "same",
)  # fmt: skip
_BEFORE = ("most", "lost", "cpu", "peak_mb", "log_kb", "unwell")
_COLUMNS = [
    "attack", "mode",
    *(name.replace("_", " ") for name in _SHOWN),
    *(f"before: {name.replace('_', ' ')}" for name in _BEFORE),
]  # fmt: skip

_INTRODUCTION = """\
# What attacks by one tenant cost the others

Made by `KPROXY_TENANTS=all KPROXY_TENANTS_RESULTS=tests/tenants/RESULTS.md .venv/bin/pytest tests/tenants
-n 0`, in parts (`-k`, `-m ipvs`): each run replaces the lines of the attacks it made. IPVS runs in a
user-mode kernel, where a system call costs fifty times as much.

Delays of the victim in ms, from its write to the API until a packet meets the new endpoint: `usual` is the
median before the attack, `median`, `p99` and `most` are those during it. `lost`: 1 if a change was not in the
kernel in time; `most` is that limit then. `cpu`: processor seconds of kproxy and its children during the
attack. `before mb`, `peak mb`: its resident memory. `log kb`, `events`: its log and its Event objects.
`unwell`: answers of /livez and /healthz other than 200. `same`: whether the kernel held the former state once
the attacker's objects were deleted. `before: ...`: the same of the version before objects' costs were
bounded.
"""


def table(counts: Iterable[Counts]) -> Iterator[str]:
    """Yield a line of headings, then a line for each attack and mode, in columns."""
    rows = [_HEADINGS, *sorted([str(value) for value in astuple(each)] for each in counts)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        head = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        rest = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*head, *rest])


def add_to(path: Path, counts: Iterable[Counts], *, reference: bool = REFERENCE) -> None:
    """Replace the lines of these attacks and modes in a file of results."""
    rows = _read(path) if path.exists() else {}
    for each in counts:
        shown = [str(getattr(each, name)) for name in _SHOWN]
        old = [str(getattr(each, name)) for name in _BEFORE]
        key = (each.attack, each.mode)
        known = rows.get(key, [*key, *([""] * (len(_SHOWN) + len(_BEFORE)))])
        if reference:
            rows[key] = [*known[: 2 + len(_SHOWN)], *old]
        else:
            rows[key] = [*key, *shown, *known[2 + len(_SHOWN) :]]
    lines = [_line(_COLUMNS), "|" + "---|" * len(_COLUMNS), *(_line(rows[key]) for key in sorted(rows))]
    path.write_text("\n".join([_INTRODUCTION, *lines, ""]), encoding="utf-8")


def _read(path: Path) -> dict[tuple[str, str], list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("| ")]
    begin = rows.index(_COLUMNS)
    return {(row[0], row[1]): row for row in rows[begin + 1 :]}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
