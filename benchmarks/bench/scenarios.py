"""The scenarios, timed from outside: from an API write, or a start, to the first packet that obeys it.

    python -m benchmarks.bench.scenarios '{"contender": {...}, "services": 1000, ...}'

runs all scenarios for one contender at one size in the current network namespace, prints progress on stderr
and one JSON object on stdout. What was measured when the time of the stage is over is printed too.
"""

import itertools
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks import cluster
from benchmarks.bench import own_log
from benchmarks.bench.contenders import Contender
from benchmarks.bench.stage import GLANCE, GaveUp, MemoryWatch, Stage

LOST_AFTER: Final = 60.0
"""Seconds after which a single change counts as lost, if the contender came up in half of that."""

CALM_WITHIN: Final = 30.0
"""Seconds after a start in which a contender that already serves may finish its work."""


@dataclass(frozen=True)
class Plan:
    """Sizes and durations of the scenarios.

    `rest` are seconds between changes that are timed alone: longer than a contender's pause between syncs.
    `churn_rate` are services a second that get new endpoints, all of them. `limit` are seconds that a
    contender may take to come up. `starts` is the number of cold starts, each in a new network namespace, and
    of restarts.
    """

    services: int
    endpoints: int
    repeats: int
    rest: float
    connects: int
    idle_seconds: float
    churn_seconds: float
    churn_rate: float
    limit: float
    starts: int = 1


class OutOfTime(Exception):
    """The time of the stage is over."""


class Scenarios:
    """One contender on its stage; `result` grows from scenario to scenario."""

    def __init__(self, stage: Stage, plan: Plan, progress: Callable[[str], None]) -> None:
        self.stage = stage
        self.plan = plan
        self._say = progress
        self.doing = ""
        self.result: dict[str, Any] = {}
        self._moved = itertools.count(1)
        self._last = plan.services - 1
        self._lost_after = LOST_AFTER

    def progress(self, what: str) -> None:
        """Say what is measured now."""
        self.doing = what
        self._say(what)

    def run(self, *, only_cold: bool = False) -> None:
        """All of them, or the cold start only; what was measured stays in `result`.

        Raises GaveUp if the program did not come up, ended, or lost something. A lost change ends its
        scenario only, but without a cold start there is nothing else to time.
        """
        plan, api = self.plan, self.stage.api
        api.apply_many([cluster.service(i) for i in range(plan.services)], validate=False)
        api.apply_many(
            [cluster.endpoint_slice(i, plan.endpoints) for i in range(plan.services)], validate=False
        )
        if only_cold:
            self.progress("cold start again")
            self.result["cold_start_ms"] = [self._cold_start()]
            return
        lost: list[str] = []
        with MemoryWatch(self.stage) as memory:
            try:
                self.progress("cold start")
                self.cold_start()
                for scenario in (
                    self.endpoint_changed,
                    self.service_added_and_deleted,
                    self.rolling_update,
                    self.packets,
                    self.idle,
                    self.churn,
                    self.restart,
                ):
                    name = scenario.__name__.replace("_", " ")
                    self.progress(name)
                    try:
                        scenario()
                    except GaveUp as error:
                        lost.append(f"{name}: {error}")
                        if not self.stage.runs():
                            break
            finally:
                self.result["memory_with_children_mb"] = memory.peak_mb
        if lost:
            raise GaveUp("\n".join(lost))

    def cold_start(self) -> None:
        """From exec to the answer of the last service, and of some others."""
        took = self._cold_start()
        self.result["cold_start_ms"] = [took]
        self._lost_after = max(LOST_AFTER, 2 * took / 1000)
        self.stage.calm(CALM_WITHIN)
        self.result["cold_start_cpu_s"] = self.stage.cpu_seconds()
        self.result["cold_start_phases"] = own_log.phases(self.stage.log())
        self.result["memory_at_rest_mb"] = self.stage.resident_mb()

    def _cold_start(self) -> float:
        began = self.stage.start()
        end = began
        for index in {self._last, 0, self._last // 2}:
            end = max(end, self._came_up(began, cluster.cluster_ip(index)))
        return (end - began) * 1000

    def endpoint_changed(self) -> None:
        """One write replaces a service's endpoints; until a new one answers.

        All of them, so that the first packet that obeys shows it: to one among five it comes by chance.
        """
        before = self.stage.cpu_seconds()
        seen = len(self.stage.log())
        samples = [self._move(n * 7 % self.plan.services) for n in range(self.plan.repeats)]
        self._rest()
        self.result["endpoint_changed_ms"] = samples
        self.result["endpoint_changed_cpu_ms"] = (self.stage.cpu_seconds() - before) / len(samples) * 1000
        self.result["endpoint_changed_phases"] = own_log.phases(self.stage.log()[seen:])

    def service_added_and_deleted(self) -> None:
        """A service comes, until it answers, and goes, until it does not."""
        added, deleted = [], []
        api = self.stage.api
        for index in range(self.plan.services, self.plan.services + self.plan.repeats):
            address = cluster.cluster_ip(index)
            self._rest()
            began = time.monotonic()
            api.apply(cluster.endpoint_slice(index, self.plan.endpoints), validate=False)
            api.apply(cluster.service(index), validate=False)
            added.append((self.stage.until(address, timeout=self._lost_after) - began) * 1000)
            self._rest()
            began = time.monotonic()
            api.delete("Service", "bench", f"svc-{index}")
            deleted.append((self.stage.until(address, gone=True, timeout=self._lost_after) - began) * 1000)
            api.delete("EndpointSlice", "bench", f"svc-{index}-1")
        self.result |= {"service_added_ms": added, "service_deleted_ms": deleted}

    def rolling_update(self) -> None:
        """All endpoints of a service move, a write each; from the last write until the last one answers."""
        samples = []
        for n in range(max(1, self.plan.repeats // 3)):
            index = (n * 11 + 3) % self.plan.services
            self._rest()
            hosts = cluster.pods(index, self.plan.endpoints)
            new = cluster.pods(index, self.plan.endpoints, generation=1 + n)
            for done in range(1, self.plan.endpoints + 1):
                slice_ = cluster.endpoint_slice(index, self.plan.endpoints)
                for k, endpoint in enumerate(slice_["endpoints"]):
                    endpoint["addresses"] = [(new if k < done else hosts)[k]]
                self.stage.api.apply(slice_, validate=False)
            began = time.monotonic()
            ended = self.stage.until(cluster.cluster_ip(index), among=new[-1:], timeout=self._lost_after)
            samples.append((ended - began) * 1000)
        self.result["rolling_update_ms"] = samples

    def packets(self) -> None:
        """Handshakes with the first and the last service, and connections a second of one client."""
        for which, index in (("first", 0), ("last", self._last)):
            address = cluster.cluster_ip(index)
            command = {"address": address, "port": 80}
            self.stage.command({"do": "connect", "count": 200, **command})
            answer = self.stage.command({"do": "connect", "count": self.plan.connects, **command})
            self.result[f"connect_{which}_us"] = answer["us"]
            seconds = min(2.0, self.plan.churn_seconds)
            rate = self.stage.command({"do": "rate", "seconds": seconds, **command})
            self.result[f"connections_per_second_{which}"] = rate["per_second"]

    def idle(self) -> None:
        """Processor time while nothing changes."""
        self._rest()
        before, began = self.stage.cpu_seconds(), time.monotonic()
        threading.Event().wait(self.plan.idle_seconds)
        spent = self.stage.cpu_seconds() - before
        self.result["idle_cpu_percent"] = spent / (time.monotonic() - began) * 100

    def churn(self) -> None:
        """Services get new endpoints all the time; now and then one of them is watched until it obeys."""
        plan = self.plan
        watched: list[tuple[int, int, float]] = []
        busy, done = threading.Event(), threading.Event()
        samples: list[float] = []
        lost: list[str] = []

        def watch() -> None:
            while not done.is_set() or watched:
                if not watched:
                    done.wait(0.001)
                    continue
                index, generation, began = watched[0]
                new = cluster.pods(index, plan.endpoints, generation=generation)
                try:
                    ended = self.stage.until(cluster.cluster_ip(index), among=new, timeout=self._lost_after)
                except GaveUp as error:
                    lost.append(str(error))
                    ended = began + self._lost_after
                samples.append((ended - began) * 1000)
                watched.clear()
                busy.clear()

        watcher = threading.Thread(target=watch, daemon=True)
        before, began = self.stage.cpu_seconds(), time.monotonic()
        watcher.start()
        count = int(plan.churn_rate * plan.churn_seconds)
        for n in range(count):
            index = n * 13 % plan.services
            generation = 1 + n // plan.services
            threading.Event().wait(max(0.0, began + n / plan.churn_rate - time.monotonic()))
            now = time.monotonic()
            slice_ = cluster.endpoint_slice(index, plan.endpoints, generation=generation)
            self.stage.api.apply(slice_, validate=False)
            if not busy.is_set() or n == count - 1:
                if n == count - 1:
                    while busy.is_set():
                        threading.Event().wait(0.001)
                busy.set()
                watched.append((index, generation, now))
        done.set()
        watcher.join()
        cpu, seconds = self.stage.cpu_seconds() - before, time.monotonic() - began
        self.result |= {
            "churn_ms": samples,
            "churn_lost": len(lost),
            "churn_changes": count,
            "churn_backlog_ms": samples[-1] if samples else None,
            "churn_cpu_s": cpu,
            "churn_cpu_percent": cpu / seconds * 100,
            "churn_seconds": seconds,
        }

    def restart(self) -> None:
        """Restart with all rules in place: from exec until a change made in between is obeyed."""
        self.result["memory_mb"] = self.stage.peak_mb()
        index = 5 % self.plan.services
        took, cpu = [], []
        for _ in range(self.plan.starts):
            self.stage.stop()
            moved = next(self._moved)
            slice_ = cluster.endpoint_slice(index, self.plan.endpoints, moved=moved)
            self.stage.api.apply(slice_, validate=False)
            new = cluster.pods(index, self.plan.endpoints, moved=moved)[-1:]
            began = self.stage.start()
            took.append((self._came_up(began, cluster.cluster_ip(index), among=new) - began) * 1000)
            self.stage.calm(CALM_WITHIN)
            cpu.append(self.stage.cpu_seconds())
        self.result |= {
            "restart_ms": took,
            "restart_cpu_s": cpu,
            "restart_rules_written": own_log.rules_written(self.stage.log()),
        }

    def _came_up(self, began: float, address: str, **wanted: Any) -> float:
        left = max(GLANCE, began + self.plan.limit - time.monotonic())
        try:
            return self.stage.until(address, timeout=left, **wanted)
        except GaveUp as error:
            if not self.stage.runs():
                raise
            raise GaveUp(f"did not come up in {self.plan.limit:.0f} s: {error}") from error

    def _move(self, index: int) -> float:
        generation = 1 + next(self._moved) % (cluster.GENERATIONS - 1)
        self._rest()
        slice_ = cluster.endpoint_slice(index, self.plan.endpoints, generation=generation)
        new = cluster.pods(index, self.plan.endpoints, generation=generation)
        began = time.monotonic()
        self.stage.api.apply(slice_, validate=False)
        return (
            self.stage.until(cluster.cluster_ip(index), among=new, timeout=self._lost_after) - began
        ) * 1000

    def _rest(self) -> None:
        threading.Event().wait(self.plan.rest)


def main() -> None:
    """Run one contender at one size."""
    setting = json.loads(sys.argv[1])
    contender = Contender(**{**setting["contender"], "flags": tuple(setting["contender"]["flags"])})
    plan = Plan(**setting["plan"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))

    def over(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, over)

    def progress(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    answer: dict[str, Any] = {"contender": contender.name, "mode": contender.mode, "plan": asdict(plan)}
    with Stage(contender) as stage:
        scenarios = Scenarios(stage, plan, progress)
        signal.setitimer(signal.ITIMER_REAL, setting["seconds"])
        try:
            scenarios.run(only_cold=setting["only_cold"])
        except GaveUp as error:
            answer["gave_up"] = str(error)
        except OutOfTime:
            answer["gave_up"] = f"not finished in {setting['seconds']:.0f} s: {scenarios.doing}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        answer["result"] = scenarios.result
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
