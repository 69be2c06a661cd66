"""The file of results keeps the lines of faults that a run did not inject, and has totals."""

from dataclasses import replace
from pathlib import Path

from tests.faults.bench import Counts
from tests.faults.report import add_to, table

GONE = Counts("API: gone", "nft", "", 3, 100, 0, 1, 0, 90, 0, 2, 1.5, 0.25)
FLUSHED = Counts("damage: flushed", "nft", "requests", 1, 50, 7, 0, 0, 40, 0, 3, 2.5, -0.5)


def test_a_run_replaces_its_own_lines_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    add_to(path, [GONE, FLUSHED])
    add_to(path, [replace(GONE, requests=300), replace(GONE, mode="ipvs")])
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert lines[1:4] == [
        "| ipvs |  | 1 | 3 | 100 | 0 | 1 | 0 | 90 | 0 | 1.5 | 0.25 |",
        "| nft |  | 1 | 3 | 300 | 0 | 1 | 0 | 90 | 0 | 1.5 | 0.25 |",
        "| nft | requests | 1 | 1 | 50 | 7 | 0 | 0 | 40 | 0 | 2.5 | -0.5 |",
    ]
    assert lines[5:] == [
        "| API: gone | ipvs |  | 3 | 100 | 0 | 1 | 0 | 90 | 0 | 2 | 1.5 | 0.25 |",
        "| API: gone | nft |  | 3 | 300 | 0 | 1 | 0 | 90 | 0 | 2 | 1.5 | 0.25 |",
        "| damage: flushed | nft | requests | 1 | 50 | 7 | 0 | 0 | 40 | 0 | 3 | 2.5 | -0.5 |",
    ]


def test_the_table_for_the_terminal_has_columns() -> None:
    headings, first, second = table([FLUSHED, GONE])
    assert headings.split()[:3] == ["fault", "mode", "costs"]
    assert first.startswith("API: gone        nft")
    assert second.startswith("damage: flushed  nft")
