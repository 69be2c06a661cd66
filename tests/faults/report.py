"""The table of what became of each fault."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields

from tests.faults.site import Counts


def table(counts: Iterable[Counts]) -> Iterator[str]:
    """A line for each fault and mode, in columns, after a line of headings."""
    rows = [[field.name.replace("_", " ") for field in fields(Counts)]]
    rows += sorted([str(value) for value in asdict(each).values()] for each in counts)
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        head = [text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True)]
        rest = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*head, *rest])
