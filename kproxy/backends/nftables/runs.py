"""The elements of a numbered endpoint map, one text for each frontend.

Such an element has the key `frontend . number` and an endpoint as value. Half a million keys and values take
80 MB, and each dictionary that holds them 20 MB more. Here a frontend has one entry, whose text has a line
for the value of each number: 18 bytes each, and the desired and the applied elements share it.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence, ValuesView

Run = str
"""The value of each number of one frontend, a line each; an empty line: there is no such element."""

MOST_NUMBERS = 64
"""The longest run: numbers of elements are below it."""

_END = "\n"


def run_of_values(values: Sequence[str]) -> Run:
    """The run with these values, "" for none; empty ones at the end do not count."""
    return _END.join(values).rstrip(_END)


def run_of(elements: Mapping[str, str], prefix: str) -> Run:
    """The run of a frontend in a map's elements; "" if it has none."""
    if isinstance(elements, Runs):
        return elements.run(prefix)
    return run_of_values([elements.get(f"{prefix} . {number}", "") for number in range(MOST_NUMBERS)])


def elements_of(prefix: str, run: Run) -> Iterator[tuple[str, str]]:
    """The keys and values of a frontend's elements."""
    return ((f"{prefix} . {number}", value) for number, value in enumerate(run.split(_END)) if value)


class Runs(MutableMapping[str, str]):
    """Value by key, like a dictionary of the elements. Not thread-safe, except `len`."""

    __slots__ = ("_count", "_runs")

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._count = 0

    def run(self, prefix: str) -> Run:
        """The run of a frontend; "" if it has none."""
        return self._runs.get(prefix, "")

    def runs(self) -> Mapping[str, Run]:
        """Every run by frontend; a view that follows changes."""
        return self._runs

    def set_run(self, prefix: str, run: Run) -> None:
        """Replace the run of a frontend."""
        self._count += _size(run) - _size(self._runs.get(prefix, ""))
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
        values = self._runs.get(prefix, "").split(_END)
        value = values[number] if number < len(values) else ""
        if not value:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        prefix, number = _split(key)
        if number >= MOST_NUMBERS:
            raise ValueError(f"no number below {MOST_NUMBERS}: {key}")
        self.set_run(prefix, _merged(self._runs.get(prefix, ""), _END * number + value))

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        prefix, number = _split(key)
        values = self._runs[prefix].split(_END)
        values[number] = ""
        self.set_run(prefix, run_of_values(values))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for prefix, run in self._runs.items():
            for key, _ in elements_of(prefix, run):
                yield key

    def values(self) -> ValuesView[str]:
        """The values in the order of the keys."""
        return _Values(self)


class _Values(ValuesView[str]):
    """Does not look up each key."""

    _mapping: Runs

    def __iter__(self) -> Iterator[str]:
        for run in self._mapping.runs().values():
            yield from filter(None, run.split(_END))


def runs_from(elements: Mapping[str, str], wanted: Runs) -> MutableMapping[str, str]:
    """The same elements as runs, those that are `wanted` shared; as a dictionary if numbers are too large."""
    lists: dict[str, list[str]] = {}
    for key, value in elements.items():
        prefix, number = _split(key)
        if number >= MOST_NUMBERS:
            return dict(elements)
        values = lists.setdefault(prefix, [])
        if number >= len(values):
            values += [""] * (number + 1 - len(values))
        values[number] = value
    found = Runs()
    for prefix, same in wanted.runs().items():
        if prefix in lists and _END.join(lists[prefix]) == same:
            del lists[prefix]
            found.set_run(prefix, same)
    for prefix, values in lists.items():
        found.set_run(prefix, run_of_values(values))
    return found


def _split(key: str) -> tuple[str, int]:
    prefix, _, number = key.rpartition(" . ")
    return prefix, int(number) if number.isdecimal() else MOST_NUMBERS


def _size(run: Run) -> int:
    """The number of elements."""
    return sum(map(bool, run.split(_END))) if run else 0


def _merged(known: Run, new: Run) -> Run:
    """The values of `new`, and of `known` where there are none."""
    values, added = known.split(_END), new.split(_END)
    values += [""] * (len(added) - len(values))
    values[: len(added)] = [value or old for value, old in zip(added, values, strict=False)]
    return run_of_values(values)
