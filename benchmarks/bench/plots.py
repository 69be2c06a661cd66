"""The results as pictures: how cost grows with size, how churn spreads, and where the time goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from benchmarks.bench.results import FIGURES, Row

GROWTH = ("cold start ms", "endpoint changed ms p50", "service added ms", "churn ms p99")


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write each picture as PNG and SVG; returns the files."""
    with mpl.rc_context({"svg.hashsalt": "kproxy", "axes.grid": True, "grid.alpha": 0.3}):
        pictures = {"latency": _growth(rows), "churn": _churn(rows), "phases": _phases(rows)}
        files = []
        for name, picture in pictures.items():
            if picture is None:
                continue
            for suffix in ("png", "svg"):
                files.append(folder / f"{name}.{suffix}")
                picture.savefig(files[-1], dpi=120, bbox_inches="tight")
    return files


def _growth(rows: Sequence[Row]) -> Picture | None:
    picture = Picture(figsize=(11, 7))
    figures = [figure for figure in FIGURES if figure.title in GROWTH]
    for axes, figure in zip(picture.subplots(2, 2).flat, figures, strict=True):
        for label, group in _by_contender(rows).items():
            points = sorted((row["plan"]["services"], figure.of(row)) for row in group)
            measured = [(size, value) for size, value in points if value is not None]
            if measured:
                axes.plot(*zip(*measured, strict=True), marker="o", label=label)
        axes.set(title=figure.title, xlabel="services", xscale="log", yscale="log")
    axes.legend(fontsize="small")
    picture.tight_layout()
    return picture


def _churn(rows: Sequence[Row]) -> Picture | None:
    picture = Picture(figsize=(8, 5))
    axes: Any = picture.subplots()
    for row in rows:
        samples = sorted(row["result"].get("churn_ms") or [])
        if samples:
            shares = [(n + 1) / len(samples) for n in range(len(samples))]
            axes.step(samples, shares, where="post", label=f"{_label(row)}, {row['plan']['services']}")
    if not axes.lines:
        return None
    axes.set(
        title="churn: from the API write to the packet that obeys", xlabel="ms", ylabel="share", xscale="log"
    )
    axes.legend(fontsize="small")
    return picture


def _phases(rows: Sequence[Row]) -> Picture | None:
    told = [row for row in rows if row["result"].get("endpoint_changed_phases")]
    if not told:
        return None
    picture = Picture(figsize=(8, 1.5 + 0.4 * len(told)))
    axes: Any = picture.subplots()
    labels = [f"{row['mode']}, {row['plan']['services']} x {row['plan']['endpoints']}" for row in told]
    left = [0.0] * len(told)
    median = next(figure for figure in FIGURES if figure.title == "endpoint changed ms p50")
    totals = [median.of(row) or 0.0 for row in told]
    own = [row["result"]["endpoint_changed_phases"] for row in told]
    parts = {
        "plan and render": [phases["plan"] for phases in own],
        "kernel": [phases["apply"] for phases in own],
    }
    spent = [sum(values) for values in zip(*parts.values(), strict=True)]
    parts = {"watch, decode, wait": [max(0.0, t - s) for t, s in zip(totals, spent, strict=True)], **parts}
    for name, values in parts.items():
        axes.barh(labels, values, left=left, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set(title="one endpoint changed: where kproxy's time goes", xlabel="ms")
    axes.legend(fontsize="small")
    return picture


def _by_contender(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_label(row), []).append(row)
    return found


def _label(row: Row) -> str:
    several = f" x {row['plan']['endpoints']}"
    return f"{row['contender']} {row['mode']}{several}"
