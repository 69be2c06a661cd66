"""The difference between the desired table and the kernel's, as one transaction. No I/O."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.backends.policy.chains import Chain
from kproxy.backends.policy.desired import DesiredTable, Elements
from kproxy.backends.policy.record import Record
from kproxy.backends.policy.script import Script
from kproxy.plan.policy.model import Direction

ADDRESSES = "addresses"
"""The key of what belongs to no group: addresses that are isolated no longer, known ones, fixed chains."""


class Change(msgspec.Struct, frozen=True):
    """What one transaction writes: maps and sets to make, rules by chain, keys to delete, elements to add.

    `idle` are chains, maps and sets that nothing needs, as `chain NAME`, to be deleted. `sets` and
    `addresses` are those of the marks in DesiredTable that the change settles.
    """

    declared: Sequence[str] = ()
    chains: Mapping[str, Chain] = {}
    doomed: Mapping[str, Sequence[str]] = {}
    fresh: Mapping[str, Mapping[str, str]] = {}
    idle: Sequence[str] = ()
    sets: Collection[str] = ()
    addresses: Collection[str] = ()

    def __bool__(self) -> bool:
        return bool(self.declared or self.chains or self.doomed or self.fresh or self.idle)

    def write(self, script: Script, hooks: Mapping[str, str], standing: Collection[str]) -> None:
        """Add the commands; `standing` are the chains that exist."""
        script.declare(self.declared)
        script.chains(self.chains, hooks, standing)
        for name, keys in self.doomed.items():
            script.delete_elements(name, keys)
        for name, elements in self.fresh.items():
            script.add_elements(name, elements)
        delete(script, self.idle)

    def objects(self) -> Iterable[str]:
        """The names, as in drifts, of what is written."""
        yield from (f"{names.kind_of(name)} {name}" for name in self.declared)
        yield from (f"chain {name}" for name in self.chains)
        for changed in (self.doomed, self.fresh):
            for name, keys in changed.items():
                yield from (f"element {{ {key} }} of {name}" for key in keys)
        yield from self.idle

    def note(self, record: Record) -> None:
        """Note in the record that the kernel has committed it."""
        for name in self.declared:
            record.held.setdefault(name, {})
        record.apply(self.chains, self.doomed, self.fresh)
        record.forget(self.idle)


def delete(script: Script, objects: Collection[str]) -> None:
    """Delete chains, maps and sets: rules first, then what they read, and chains when no map leads there."""
    if objects:
        chains = [each.partition(" ")[2] for each in objects if each.startswith("chain ")]
        script.delete_chains(chains, [each for each in objects if not each.startswith("chain ")])


def difference(desired: DesiredTable, record: Record, keys: Collection[str]) -> Change:
    """What has to be written for some groups, and for what belongs to none if ADDRESSES is among the keys.

    A group is written with the sets that it reads and with the addresses of its pods. What depends on no
    policy and closed groups are always among it.
    """
    groups = [
        name for name in {**dict.fromkeys(desired.closed), **dict.fromkeys(keys)} if name in desired.groups
    ]
    containers = dict.fromkeys(sorted(desired.fixed_containers))
    wanted = dict.fromkeys(sorted(desired.fixed_chains))
    for group in groups:
        wanted |= dict.fromkeys(desired.chains_of(group))
        containers |= dict.fromkeys(sorted(desired.reads(group)))
    chains = {
        name: desired.chains[name] for name in wanted if record.chains.get(name) != desired.chains[name]
    }
    doomed: dict[str, list[str]] = {}
    fresh: dict[str, dict[str, str]] = {}
    declared = [name for name in containers if name not in record.held]
    settled = [name for name in containers if name in desired.dirty_sets]
    for name in dict.fromkeys((*declared, *settled)):
        if not names.is_by_address(name):
            _compare(name, record.held.get(name, {}), desired.elements(name), doomed, fresh)
    addresses = _addresses(desired, record, frozenset(groups), doomed, fresh)
    return Change(
        declared,
        chains,
        {name: some for name, some in doomed.items() if some},
        {name: some for name, some in fresh.items() if some},
        (),
        settled,
        addresses,
    )


def idle(desired: DesiredTable, record: Record) -> list[str]:
    """What nothing needs: chains, maps and sets."""
    chains = sorted(record.chains.keys() - desired.chains.keys())
    containers = sorted(record.held.keys() - desired.containers)
    return [
        *(f"chain {name}" for name in chains),
        *(f"{names.kind_of(name)} {name}" for name in containers),
        *sorted(record.strange),
    ]


def whole_script(desired: DesiredTable, family: Family, table: str = names.TABLE) -> Script:
    """The commands that make the whole table, which must not exist; the same for equal tables."""
    script = Script(family, table)
    script.make_table()
    desired.touch_all(())
    change = difference(desired, Record(), (*sorted(desired.groups), ADDRESSES))
    fresh = {name: dict(sorted(elements.items())) for name, elements in change.fresh.items()}
    msgspec.structs.replace(change, fresh=fresh).write(script, desired.hooks, ())
    return script


def _compare(
    name: str,
    held: Mapping[str, str],
    wanted: Elements,
    doomed: dict[str, list[str]],
    fresh: dict[str, dict[str, str]],
) -> None:
    if not isinstance(wanted, Mapping):  # a set of thousands, of which a few members change
        doomed[name] = list(held.keys() - wanted)
        fresh[name] = dict.fromkeys(wanted - held.keys() if held else wanted, "")
    elif held != wanted:
        doomed[name] = [key for key, value in held.items() if wanted.get(key) != value]
        fresh[name] = {key: value for key, value in wanted.items() if held.get(key) != value}


def _addresses(
    desired: DesiredTable,
    record: Record,
    groups: frozenset[str],
    doomed: dict[str, list[str]],
    fresh: dict[str, dict[str, str]],
) -> list[str]:
    """Compare the marked addresses of local pods; return those that are settled then.

    An address is led to its group only if that exists or is among the groups that are written.
    """
    settled = []
    for address in sorted(desired.dirty_addresses):
        complete = True
        for direction in Direction:
            have = record.held.get(direction.value, {}).get(address)
            want = desired.verdict(address, direction)
            if have == want:
                continue
            group = desired.led_to(address, direction)
            if group is not None and group not in groups and group not in record.chains:
                complete = False
                continue
            _set(direction.value, address, have, want, doomed, fresh)
        have = record.held.get(names.KNOWN, {}).get(address)
        want = "" if desired.is_known(address) else None
        if have != want:
            _set(names.KNOWN, address, have, want, doomed, fresh)
        if complete:
            settled.append(address)
    return settled


def _set(
    name: str,
    key: str,
    have: str | None,
    want: str | None,
    doomed: dict[str, list[str]],
    fresh: dict[str, dict[str, str]],
) -> None:
    if have is not None:
        doomed.setdefault(name, []).append(key)
    if want is not None:
        fresh.setdefault(name, {})[key] = want
