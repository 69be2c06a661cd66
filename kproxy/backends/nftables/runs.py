"""The elements of a numbered endpoint map, a tuple for each frontend.

Such an element has the key `frontend . number` and an endpoint as value. Half a million keys as text take 40 MB,
and each dictionary that holds them 20 MB more. Here a frontend has one entry with the values in order of their
numbers, and the desired and the applied elements share it.
"""

from collections.abc import Iterator, Mapping, MutableMapping, ValuesView
from itertools import compress

Run = tuple[str | None, ...]
"""The value of each number of one frontend; None: there is no such element."""

MOST_NUMBERS = 64
"""The longest run: numbers of elements are below it."""


def run_of(elements: Mapping[str, str], prefix: str) -> Run:
    """The run of a frontend in a map's elements; () if it has none."""
    if isinstance(elements, Runs):
        return elements.run(prefix)
    return _trimmed([elements.get(f"{prefix} . {number}") for number in range(MOST_NUMBERS)])


class Runs(MutableMapping[str, str]):
    """Value by key, like a dictionary of the elements. Not thread-safe, except `len`."""

    __slots__ = ("_count", "_runs")

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._count = 0

    def run(self, prefix: str) -> Run:
        """The run of a frontend; () if it has none."""
        return self._runs.get(prefix, ())

    def runs(self) -> Mapping[str, Run]:
        """Every run by frontend; a view that follows changes."""
        return self._runs

    def set_run(self, prefix: str, run: Run) -> None:
        """Replace the run of a frontend."""
        self._count += _size(run) - _size(self._runs.get(prefix, ()))
        if run:
            self._runs[prefix] = run
        else:
            self._runs.pop(prefix, None)

    def update(self, other: Mapping[str, str]) -> None:  # type: ignore[override]
        """Add or replace elements; the runs of a new frontend are shared with `other`."""
        if not isinstance(other, Runs):
            super().update(other)
            return
        for prefix, run in other.runs().items():
            known = self._runs.get(prefix)
            self.set_run(prefix, run if known is None else _merged(known, run))

    def __getitem__(self, key: str) -> str:
        prefix, number = _split(key)
        run = self._runs.get(prefix, ())
        value = run[number] if number < len(run) else None
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        prefix, number = _split(key)
        if number >= MOST_NUMBERS:
            raise ValueError(f"no number below {MOST_NUMBERS}: {key}")
        self.set_run(prefix, _merged(self._runs.get(prefix, ()), (*(None,) * number, value)))

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        prefix, number = _split(key)
        run = list(self._runs[prefix])
        run[number] = None
        self.set_run(prefix, _trimmed(run))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for prefix, run in self._runs.items():
            for number, value in enumerate(run):
                if value is not None:
                    yield f"{prefix} . {number}"

    def values(self) -> ValuesView[str]:
        """The values in the order of the keys."""
        return _Values(self)


class _Values(ValuesView[str]):
    """Does not look up each key."""

    _mapping: Runs

    def __iter__(self) -> Iterator[str]:
        for run in self._mapping.runs().values():
            for value in run:
                if value is not None:
                    yield value


def runs_from(elements: Mapping[str, str], wanted: Runs) -> MutableMapping[str, str]:
    """The same elements as runs, those that are `wanted` shared; as a dictionary if numbers are too large."""
    lists: dict[str, list[str | None]] = {}
    for key, value in elements.items():
        prefix, number = _split(key)
        if number >= MOST_NUMBERS:
            return dict(elements)
        run = lists.setdefault(prefix, [])
        if number >= len(run):
            run += [None] * (number + 1 - len(run))
        run[number] = value
    found = Runs()
    for prefix, same in wanted.runs().items():
        if lists.get(prefix) == list(same):
            del lists[prefix]
            found.set_run(prefix, same)
    for prefix, values in lists.items():
        found.set_run(prefix, tuple(values))
    return found


def _split(key: str) -> tuple[str, int]:
    prefix, _, number = key.rpartition(" . ")
    return prefix, int(number) if number.isdecimal() else MOST_NUMBERS


def _size(run: Run) -> int:
    return len(run) - run.count(None)


def _merged(known: Run, new: Run) -> Run:
    """The values of `new`, and of `known` where there are none."""
    length = max(len(known), len(new))
    known, new = known + (None,) * (length - len(known)), new + (None,) * (length - len(new))
    return tuple([old if value is None else value for old, value in zip(known, new, strict=True)])


def _trimmed(run: list[str | None]) -> Run:
    """A run without the empty places at its end."""
    last = max(compress(range(len(run)), [value is not None for value in run]), default=-1)
    return tuple(run[: last + 1])
