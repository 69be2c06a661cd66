"""Measures one stage: one contender at one size.

A run continues after its last finished stage, so a stage has a time limit. Each cold start has a process and
a network namespace of its own.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.bench import parts
from benchmarks.bench.contenders import Contender
from benchmarks.bench.results import Row
from benchmarks.bench.scenarios import Plan

GRACE = 30.0
"""Seconds that a worker may take to end after its time."""

SCENARIOS = 8
"""Steps that a stage reports from its first cold start to its restarts."""


class WorkerFailed(Exception):
    """A process of the benchmark itself failed; the message holds the end of what it printed."""


def steps(plan: Plan) -> int:
    """How many times measuring a stage reports progress, at most."""
    return SCENARIOS + 2 * plan.starts - 1


def measure(contender: Contender, plan: Plan, seconds: float, progress: Callable[[str], None]) -> Row:
    """Return the row of a stage that takes at most so many seconds.

    `gave_up` in it says what the contender did not do, `failed` that the benchmark itself failed: measure it
    again.
    """
    began = time.monotonic()
    row: Row = {"contender": contender.name, "mode": contender.mode, "plan": dataclasses.asdict(plan)}
    try:
        row |= _scenarios(contender, plan, seconds, progress)
        result = row["result"]
        for again in range(plan.starts):
            left = seconds - (time.monotonic() - began)
            if "gave_up" in row or left < 1:
                break
            if again:
                more = _scenarios(contender, plan, left, progress, only_cold=True)
                _append(result, {"cold_start_ms": more["result"].get("cold_start_ms", [])})
            if contender.command is None and parts.measured(contender.mode):
                progress("parts of a first sync")
                _append(result, _worker(_parts_argv(contender, plan), left))
    except WorkerFailed as error:
        row |= {"gave_up": str(error), "failed": True, "result": {}}
    return {**row, "seconds": round(time.monotonic() - began, 1)}


def expected(contender: Contender, plan: Plan, rows: Sequence[Row]) -> float:
    """Return about how many seconds a stage will take: its pauses, and work that grows with its size.

    The work is on the line through the contender's two largest sizes so far; if there is one, proportional to
    its size. For a contender without a row those of all count. 0 if there are none.
    """
    size = plan.services * plan.endpoints
    own = [row for row in rows if (row["contender"], row["mode"]) == (contender.name, contender.mode)]
    work: dict[int, float] = {}
    for row in own or rows:
        known = Plan(**row["plan"])
        spent = max(0.0, row["seconds"] - _pauses(known))
        of_size = known.services * known.endpoints
        work[of_size] = max(spent, work.get(of_size, 0.0))
    if not work:
        return 0.0
    *smaller, largest = sorted(work)
    if size <= largest:
        return _pauses(plan) + work[largest]
    if not smaller:
        return _pauses(plan) + work[largest] * size / largest
    slope = max(0.0, work[largest] - work[smaller[-1]]) / (largest - smaller[-1])
    return _pauses(plan) + work[largest] + slope * (size - largest)


def _pauses(plan: Plan) -> float:
    return plan.rest * plan.repeats * 3 + plan.idle_seconds + plan.churn_seconds


def _append(result: dict[str, Any], more: Mapping[str, Sequence[float]]) -> None:
    for name, samples in more.items():
        result[name] = [*result.get(name, ()), *samples]


def _scenarios(
    contender: Contender,
    plan: Plan,
    seconds: float,
    progress: Callable[[str], None],
    *,
    only_cold: bool = False,
) -> dict[str, Any]:
    setting = {
        "contender": dataclasses.asdict(contender),
        "plan": dataclasses.asdict(plan),
        "seconds": seconds,
        "only_cold": only_cold,
    }
    argv = [sys.executable, "-m", "benchmarks.bench.scenarios", json.dumps(setting)]
    return _worker(argv, seconds, progress)


def _parts_argv(contender: Contender, plan: Plan) -> list[str]:
    size = [str(plan.services), str(plan.endpoints)]
    return [sys.executable, "-m", "benchmarks.bench.parts", contender.mode, *size]


def _worker(
    argv: Sequence[str], seconds: float, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run a worker in a new network namespace and return its answer. Raises WorkerFailed."""
    said: list[str] = []
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(
            ["unshare", "--net", *argv], stdout=out, stderr=subprocess.PIPE, text=True
        ) as worker,
    ):
        late = threading.Timer(seconds + GRACE, worker.terminate)
        late.start()
        try:
            for line in worker.stderr or ():
                said.append(line)
                progress(line.strip())
        except BaseException:
            worker.terminate()
            raise
        finally:
            late.cancel()
        worker.wait()
        out.seek(0)
        answer = out.read()
    if worker.returncode:
        raise WorkerFailed(f"the benchmark itself failed:\n{''.join(said[-15:])}")
    return dict(json.loads(answer))
