"""The file of one run: written after each finished stage, so that an interrupted run can continue.

The file of an output directory has every sample. The file in the history has quantiles instead of samples,
and no commands of peers: it is small, can be compared, and holds nothing of the machine but its properties.
"""

import dataclasses
import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.bench.contenders import Contender, contenders
from benchmarks.bench.machine import differences, product_commit
from benchmarks.bench.results import Row, quantile
from benchmarks.bench.scenarios import Plan

FORMAT = 1
QUANTILES = (0.5, 0.9, 0.99)
SOURCE = ("commit", "changed", "source")


class BenchError(Exception):
    """The benchmark cannot run with these settings, or a file is not the result of a run."""


@dataclass(frozen=True)
class Settings:
    """What is measured; times in seconds. `churn` is the share of all services that changes each second."""

    modes: list[str]
    peers: list[str]
    sizes: list[int]
    endpoints: list[int]
    flags: list[str]
    repeats: int
    rest: float
    connects: int
    idle_seconds: float
    churn_seconds: float
    churn: float
    limit: float
    starts: int

    def contenders(self) -> list[Contender]:
        """Return kproxy and each peer in each mode. Raises BenchError."""
        try:
            return contenders(self.modes, self.peers, tuple(self.flags))
        except ValueError as error:
            raise BenchError(str(error)) from error

    def stages(self) -> list[tuple[Contender, Plan]]:
        """Return every contender at every size, in the order of measurement. Raises BenchError."""
        who = self.contenders()
        return [
            (contender, self._plan(size, per))
            for size in self.sizes
            for per in self.endpoints
            for contender in who
        ]

    def _plan(self, size: int, per: int) -> Plan:
        return Plan(
            services=size,
            endpoints=per,
            repeats=self.repeats,
            rest=self.rest,
            connects=self.connects,
            idle_seconds=self.idle_seconds,
            churn_seconds=self.churn_seconds,
            churn_rate=max(1.0, size * self.churn),
            limit=self.limit,
            starts=self.starts,
        )


SETTINGS = tuple(each.name for each in dataclasses.fields(Settings))


@dataclass
class Run:
    """The rows that were measured so far, with all that their figures depend on."""

    settings: dict[str, Any]
    source: dict[str, Any]
    machine: dict[str, Any]
    command: list[str]
    began: str = ""
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of an output directory or of the history. Raises BenchError."""
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise BenchError(f"{path}: {error}") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise BenchError(f"{path}: not a run of format {FORMAT}")
        try:
            found["source"] = {name: found[name] for name in SOURCE}
            return cls(**{each.name: found[each.name] for each in dataclasses.fields(cls)})
        except KeyError as error:
            raise BenchError(f"{path}: {error} is missing") from error

    def row_of(self, contender: Contender, plan: Plan) -> Row | None:
        """Return the row of a stage that need not be measured again."""
        wanted = key_of(contender, plan)
        return next((row for row in self.rows if not row.get("failed") and _key(row) == wanted), None)

    def add(self, row: Row) -> None:
        """Put a row in the place of one that must be measured again, if there is one, or at the end."""
        self.rows = [each for each in self.rows if _key(each) != _key(row)]
        self.rows.append(row)

    def cannot_continue(self, source: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
        """Return why rows of another time cannot be put beside these; "" if they can."""
        if source["source"] != self.source["source"]:
            return f"it measured other sources ({described(self.source)}) than these ({described(source)})"
        if differing := differences(self.machine, machine):
            return f"it ran on another machine ({'; '.join(differing)})"
        return ""

    def save(self, path: Path) -> None:
        """Write the file; a reader or a kill in between finds the file before or after."""
        _write(path, self)

    def keep(self, history: Path) -> Path:
        """Write the run into the history and return its file. Raises OSError."""
        shown = Settings(**self.settings)
        peers = [f"{peer.partition('=')[0]}=..." for peer in shown.peers]
        settings = dataclasses.replace(shown, peers=peers)
        kept = dataclasses.replace(
            self,
            settings=dataclasses.asdict(settings),
            command=command_line(settings),
            rows=[summary(row) for row in self.rows],
        )
        day = re.sub(r"\W", "", self.began)
        history.mkdir(parents=True, exist_ok=True)
        changed = "-changed" if self.source["changed"] else ""
        path = history / f"{day}-{(self.source['commit'] or self.source['source'])[:12]}{changed}.json"
        _write(path, kept)
        return path


def now() -> str:
    """The time in UTC, to the second."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def described(source: Mapping[str, Any]) -> str:
    """Name sources for a reader."""
    commit = (source["commit"] or "no commit")[:12]
    return f"{commit}, changed, digest {source['source']}" if source["changed"] else commit


def find(name: str, history: Path) -> Path:
    """Return the file of that name, or the latest in the history of a commit. Raises BenchError."""
    path = Path(name)
    if path.is_file():
        return path
    wanted = product_commit(name) or (name if re.fullmatch(r"[0-9a-f]{4,40}", name) else None)
    found: list[tuple[str, Path]] = []
    for file in history.glob("*.json") if wanted else ():
        run = Run.load(file)
        if (run.source["commit"] or "").startswith(wanted or ""):
            found.append((run.began, file))
    if not found:
        raise BenchError(f"--against {name!r}: neither a file nor a commit with a run in {history}")
    return max(found)[1]


def summary(row: Row) -> Row:
    """Return the row with quantiles in place of samples, and failures in one line."""
    result = {name: _quantiles(value) for name, value in row["result"].items()}
    short = {**row, "result": result}
    if "gave_up" in row:
        short["gave_up"] = row["gave_up"].splitlines()[0]
    return short


def command_line(settings: Settings) -> list[str]:
    """The arguments of `kproxy` that measure the same again."""
    lists: dict[str, Sequence[object]] = {
        "modes": settings.modes,
        "sizes": settings.sizes,
        "endpoints": settings.endpoints,
    }
    durations = {
        "rest": settings.rest,
        "idle": settings.idle_seconds,
        "churn-time": settings.churn_seconds,
        "limit": settings.limit,
    }
    numbers = {
        "repeats": settings.repeats,
        "connects": settings.connects,
        "churn": settings.churn,
        "starts": settings.starts,
    }
    return [
        "bench",
        *(f"--{name}={','.join(map(str, item))}" for name, item in lists.items()),
        *(f"--peer={peer}" for peer in settings.peers),
        *(f"--flag={flag}" for flag in settings.flags),
        *(f"--{name}={value:g}s" for name, value in durations.items()),
        *(f"--{name}={value}" for name, value in numbers.items()),
    ]


def key_of(contender: Contender, plan: Plan) -> tuple[str, str, dict[str, Any]]:
    """What a row must agree with to be this stage's."""
    return contender.name, contender.mode, dataclasses.asdict(plan)


def _key(row: Row) -> tuple[str, str, dict[str, Any]]:
    return row["contender"], row["mode"], row["plan"]


def _quantiles(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if not value:
        return None
    found = {f"p{share * 100:g}": round(quantile(value, share), 3) for share in QUANTILES}
    return {"samples": len(value), **found, "least": round(min(value), 3), "most": round(max(value), 3)}


def _write(path: Path, run: Run) -> None:
    data = {each.name: getattr(run, each.name) for each in dataclasses.fields(run)}
    written = path.with_name(f".{path.name}.new")
    written.write_text(
        json.dumps({"format": FORMAT, **run.source, **data, "source": run.source["source"]}, indent=1) + "\n"
    )
    written.replace(path)
