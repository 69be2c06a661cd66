"""Measures changes: the time from the API write to the first packet that obeys it.

`asker` sends requests without a pause. A request counts at the time of its first packet, for which the rules
choose an endpoint. A change is obeyed:

- for an added endpoint: at the start of the first request which it answered;
- for a removed endpoint: at the start of the first request after the last one which it answered, if
  `SETTLED` further requests started later and none of them reached it.

The first time is late and the second early, by the number of requests until chance selects one pod among all.
So each time has a `blur`: the time, around that moment, in which as many requests were sent as there are
pods. The time runs from just before the write; both ends use the same clock.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from kproxy_lab.demo.compare import unfair_shares
from kproxy_lab.demo.examples import Examples, Json, with_endpoints
from kproxy_lab.demo.expect import endpoints, usable
from kproxy_lab.demo.program import LogLine, ProgramSilentError, output, start_module
from kproxy_lab.demo.stage import Stage
from kproxy_lab.lab import HeldConnection, Pod

SETTLED: Final = 400
BEFORE: Final = 20
CHANGE_SECONDS: Final = 10.0
HOLD_ATTEMPTS: Final = 200


@dataclass(frozen=True, slots=True)
class Subject:
    """The service that is changed, by its first cluster IP and port."""

    service: Json
    ip: str
    port: int
    pods: tuple[Pod, ...]
    newcomer: Pod


@dataclass(frozen=True, slots=True)
class Change:
    """One write: `edit` gives a slice's new endpoints; afterwards `pod` answers or does not."""

    title: str
    pod: Pod
    comes: bool
    edit: Callable[[Json], list[Json]]


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a change. Times are seconds from the write; None: it never happened.

    The change took effect up to about `blur` seconds before `obeyed` if a pod came, after it if one left.
    """

    change: Change
    obeyed: float | None
    blur: float
    synced: float | None
    counts: Counter[str]
    asked: int
    failed: Counter[str]
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ask:
    began: float
    answered_by: str
    failed: bool

    @classmethod
    def parse(cls, line: str) -> "_Ask":
        began, _, who = line.strip().partition(" ")
        return cls(float(began), who.removeprefix("!"), who.startswith("!"))


def subject(examples: Examples, pods: Sequence[Pod]) -> Subject | None:
    """The first service with a cluster IP, no affinity and two ready pods, and a pod to add to it."""
    for service in examples.services:
        spec = service["spec"]
        ip = spec.get("clusterIP") or "None"
        if ip == "None" or spec.get("sessionAffinity") == "ClientIP" or not spec.get("ports"):
            continue
        port = spec["ports"][0]
        family = "IPv6" if ":" in ip else "IPv4"
        found = usable(endpoints(examples, service, port, family, pods))
        spare = [pod for pod in pods if not pod.local and pod not in found]
        if port.get("protocol", "TCP") == "TCP" and len(found) > 1 and spare:
            return Subject(service, ip, port["port"], tuple(found), spare[0])
    return None


def planned(about: Subject) -> list[Change]:
    """Scale up, readiness lost and regained, scale down."""
    new, unready = about.newcomer, about.pods[-1]
    return [
        Change(
            f"scale up: + {new.name}",
            new,
            comes=True,
            edit=lambda each: [*each["endpoints"], _endpoint(each, new)],
        ),
        Change(
            f"not ready: {unready.name}",
            unready,
            comes=False,
            edit=lambda each: _ready(each, unready, ready=False),
        ),
        Change(
            f"ready again: {unready.name}",
            unready,
            comes=True,
            edit=lambda each: _ready(each, unready, ready=True),
        ),
        Change(f"scale down: - {new.name}", new, comes=False, edit=lambda each: _without(each, new)),
    ]


def measure(
    stage: Stage, examples: Examples, about: Subject, change: Change, pods: Sequence[str]
) -> Measured:
    """Write a change and measure its effect; `pods`: the pods that must answer afterwards.

    Raises Interrupted, ProgramDiedError.
    """
    names = {each["metadata"]["name"] for each in examples.slices(about.service)}
    current = [each for each in stage.api.list("EndpointSlice") if each["metadata"]["name"] in names]
    new = with_endpoints(current, change.edit)
    with _Asking(stage, about) as asking:
        asking.wait(lambda: len(asking.asks) >= BEFORE)
        written = time.time()
        stage.api.apply_many(new)
        in_time = asking.wait(lambda: asking.settled(change, written))
    asks = sorted(asking.asks, key=lambda ask: ask.began)
    after = [ask for ask in asks if ask.began >= written]
    obeyed = _obeyed(after, change) if in_time else None
    line = _synced(stage, about, written)
    counts = Counter(ask.answered_by for ask in after if obeyed is not None and ask.began >= obeyed)
    failed = Counter(ask.answered_by for ask in asks if ask.failed)
    wrong = [f"{count} requests ended in {name}" for name, count in failed.items()]
    if line is None:
        wrong.append(f"kproxy logged no sync within {CHANGE_SECONDS:g} s")
    if obeyed is None:
        wrong.append(f"not obeyed within {CHANGE_SECONDS:g} s")
    else:
        wrong += [f"{name} still answered" for name in counts if name not in pods and name not in failed]
        wrong += unfair_shares(counts, pods)
    return Measured(
        change,
        None if obeyed is None else obeyed - written,
        0.0 if obeyed is None else _blur(asks, obeyed, len(pods) if change.comes else len(pods) + 1, change),
        None if line is None else line.at - written,
        counts,
        len(asks),
        failed,
        tuple(wrong),
    )


def hold(stage: Stage, about: Subject, pods: Sequence[Pod]) -> list[tuple[str, HeldConnection]]:
    """Open one connection to each of `pods` through the service; return them with the pods' names.

    The pod of a connection is random, so more connections are opened; the others are closed.
    """
    kept: dict[str, HeldConnection] = {}
    wanted = {pod.name for pod in pods}
    for _ in range(HOLD_ATTEMPTS):
        if wanted <= kept.keys():
            break
        stage.program.check()
        connection = stage.lab.hold(stage.asker, about.ip, about.port)
        name = connection.exchange("hello").pod
        if name in wanted and name not in kept:
            kept[name] = connection
        else:
            connection.close()
    return list(kept.items())


class _Asking:
    """Run an asker during a block."""

    def __init__(self, stage: Stage, about: Subject) -> None:
        self.asks: list[_Ask] = []
        self._stage = stage
        self._process = start_module(
            stage.asker.namespace, "kproxy_lab.demo.asker", about.ip, str(about.port)
        )
        self._reader = threading.Thread(target=self._read, name="asker", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()

    def wait(self, predicate: Callable[[], bool]) -> bool:
        """Wait for what the asker finds, CHANGE_SECONDS at most. Raises Interrupted, ProgramDiedError."""
        program = self._stage.program
        held = self._stage.interruption.wait_for(lambda: program.ended or predicate(), CHANGE_SECONDS)
        program.check()
        return held

    def settled(self, change: Change, written: float) -> bool:
        """Whether the change is obeyed and SETTLED requests began since."""
        after = [ask for ask in self.asks if ask.began >= written]
        obeyed = _obeyed(after, change)
        return obeyed is not None and sum(ask.began >= obeyed for ask in after) >= SETTLED

    def _read(self) -> None:
        changed = self._stage.interruption.changed
        with output(self._process) as stream:
            while data := stream.readlines(1):
                new = [_Ask.parse(line) for line in data]
                with changed:
                    self.asks += new
                    changed.notify_all()


def _synced(stage: Stage, about: Subject, written: float) -> LogLine | None:
    """Return the log line of this change; a late line must not be taken for that of the next change."""
    family = "IPv6" if ":" in about.ip else "IPv4"
    with contextlib.suppress(ProgramSilentError):
        return stage.program.wait_for("synced", CHANGE_SECONDS, since=written, family=family)
    return None


def _obeyed(asks: Sequence[_Ask], change: Change) -> float | None:
    """Return when the first request started that obeyed the change, of requests since the write."""
    by_pod = [ask.began for ask in asks if ask.answered_by == change.pod.name]
    if change.comes:
        return min(by_pod, default=None)
    last = max(by_pod, default=0.0)
    return min((ask.began for ask in asks if ask.began > last), default=None)


def _blur(asks: Sequence[_Ask], obeyed: float, pods: int, change: Change) -> float:
    """Return the duration of `pods` requests: up to the one that obeyed, or from the one before it on."""
    moments = [ask.began for ask in asks]
    index = moments.index(obeyed)
    if change.comes:
        return obeyed - moments[max(index - pods, 0)]
    return moments[min(index - 1 + pods, len(moments) - 1)] - moments[max(index - 1, 0)]


def _endpoint(each: Json, pod: Pod) -> Json:
    ip = pod.ip6 if each["addressType"] == "IPv6" else pod.ip4
    return {"addresses": [ip], "nodeName": pod.node_name, "conditions": {"ready": True}}


def _is_of(endpoint: Json, pod: Pod) -> bool:
    return endpoint["addresses"][0] in {pod.ip4, pod.ip6}


def _ready(each: Json, pod: Pod, *, ready: bool) -> list[Json]:
    return [
        {**endpoint, "conditions": {"ready": ready, "serving": ready, "terminating": False}}
        if _is_of(endpoint, pod)
        else endpoint
        for endpoint in each["endpoints"]
    ]


def _without(each: Json, pod: Pod) -> list[Json]:
    return [endpoint for endpoint in each["endpoints"] if not _is_of(endpoint, pod)]
