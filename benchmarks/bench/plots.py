"""The results as pictures: how cost grows with size, how churn spreads, and where the time goes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import StrMethodFormatter

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
    picture = Picture(figsize=(11, 8))
    figures = [figure for figure in FIGURES if figure.title in GROWTH]
    colours, lines = _colours(rows), _lines(rows)
    panels = list(picture.subplots(2, 2).flat)
    for axes, figure in zip(panels, figures, strict=True):
        for (label, endpoints), group in _by_contender(rows).items():
            points = sorted((row["plan"]["services"], figure.of(row)) for row in group if figure.of(row))
            if points:
                style = {"color": colours[label], "linestyle": lines[endpoints]}
                axes.plot(*zip(*points, strict=True), marker="o", label=f"{label} x {endpoints}", **style)
        axes.set(title=figure.title, xlabel="services", xscale="log", yscale="log")
        sizes = sorted({row["plan"]["services"] for row in rows})
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    picture.tight_layout(rect=(0, 0.14, 1, 1))
    named = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    picture.legend(named.values(), named.keys(), loc="lower center", ncols=4, fontsize="small")
    return picture


def _churn(rows: Sequence[Row]) -> Picture | None:
    """Plot churn of the largest cluster only: ten curves are readable, forty are not."""
    shown = [row for row in rows if row["result"].get("churn_ms")]
    if not shown:
        return None
    size, endpoints = _largest_case(shown)
    picture = Picture(figsize=(8, 5))
    axes: Any = picture.subplots()
    colours = _colours(rows)
    for row in shown:
        if (row["plan"]["services"], row["plan"]["endpoints"]) == (size, endpoints):
            samples = sorted(row["result"]["churn_ms"])
            shares = [(n + 1) / len(samples) for n in range(len(samples))]
            axes.step(samples, shares, where="post", label=_label(row), color=colours[_label(row)])
    title = f"churn at {size:,} x {endpoints}: from the API write to the packet that obeys"
    axes.set(title=title, xlabel="ms", ylabel="share", xscale="log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.legend(fontsize="small")
    return picture


def _phases(rows: Sequence[Row]) -> Picture | None:
    shown = [row for row in rows if row["result"].get("endpoint_changed_phases")]
    if not shown:
        return None
    shown.sort(key=lambda row: (row["mode"], -row["plan"]["services"], -row["plan"]["endpoints"]))
    picture = Picture(figsize=(8, 1.5 + 0.4 * len(shown)))
    axes: Any = picture.subplots()
    labels = [f"{row['mode']}, {row['plan']['services']} x {row['plan']['endpoints']}" for row in shown]
    left = [0.0] * len(shown)
    median = next(figure for figure in FIGURES if figure.title == "endpoint changed ms p50")
    totals = [median.of(row) or 0.0 for row in shown]
    own = [row["result"]["endpoint_changed_phases"] for row in shown]
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


def _by_contender(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((_label(row), row["plan"]["endpoints"]), []).append(row)
    return found


def _largest_case(rows: Sequence[Row]) -> tuple[int, int]:
    """The largest number of services, and of the numbers of endpoints there the one timed most often."""
    size = max(row["plan"]["services"] for row in rows)
    counts = Counter(row["plan"]["endpoints"] for row in rows if row["plan"]["services"] == size)
    return size, max(counts, key=lambda endpoints: (counts[endpoints], endpoints))


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    return {label: f"C{n}" for n, label in enumerate(dict.fromkeys(_label(row) for row in rows))}


def _lines(rows: Sequence[Row]) -> dict[int, str]:
    endpoints = sorted({row["plan"]["endpoints"] for row in rows})
    styles = ("-",) if len(endpoints) == 1 else (":", "-", "--", "-.")
    return {count: styles[n % len(styles)] for n, count in enumerate(endpoints)}


def _label(row: Row) -> str:
    return f"{row['contender']} {row['mode']}"
