"""The applied state of the nftables mode: the table in the kernel, updated by every committed transaction."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.table_drift import chain_drifts, chain_object, element_object
from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import Chain, pick_of
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.desired import LEADING, DesiredElements
from kproxy.backends.nftables.drift import contents_drifts, is_whole
from kproxy.backends.nftables.element_owners import Contents, no_contents
from kproxy.backends.nftables.listing import Structure, contents_of, is_listed
from kproxy.backends.nftables.script import Script, rules_of
from kproxy.kernel.nft.types import Nft, NftError, NftFailure, Reading


class AppliedTable:
    """One family's table: `held` are its elements, `chains` the rules by chain, None where these are unknown.

    `containers` are the names of its maps and sets that exist only while a chain reads them.
    A new AppliedTable is empty. `exists`: the kernel has a table of the name; `based`: its base chains are
    written. Every method that writes may raise NftError; the record is then as before, although the
    transaction may have been committed: `unsure` holds the names, as in drifts, of the objects to be changed.
    """

    def __init__(self, config: NftablesConfig, nft: Nft, watch: ForeignWrites) -> None:
        self.held: Contents = no_contents()
        self.chains: dict[str, Chain | None] = {}
        self.containers: set[str] = set()
        self.exists = False
        self.based = False
        self.unsure: set[str] = set()
        self.written: Counter[str] = Counter()
        self._config = config
        self._nft = nft
        self._watch = watch
        self._baseline: Structure | None = None
        self._found: Structure = {}

    @property
    def has_baseline(self) -> bool:
        """Whether it is recorded how the kernel lists the rules as they were written."""
        return self._baseline is not None

    def observe(self) -> bool:
        """Read the table; False if it does not exist or cannot be kept. Raises NftError."""
        found = self._nft.reading(self._config.family, names.TABLE)
        self.exists = found is not None
        if found is None or not is_whole(self._config.family, found):
            return False
        self._adopt(contents_of(found), found)
        return True

    def read_baseline(self) -> None:
        """Record how the kernel lists the rules; call it before any foreign write. Raises NftError."""
        found = self._nft.reading(self._config.family, names.TABLE, elements=False)
        self._baseline = found.chains if found is not None else {}

    def compare(self, *, trust: bool = True) -> tuple[tuple[Drift, ...], bool]:
        """Read the table; return its differences from the record, and False if the table cannot be kept.

        The record is then replaced by what was found. Without `trust`, recorded rules count as unknown even
        if their number is equal. Objects in `unsure` are not reported. Raises NftError.
        """
        found = self._nft.reading(self._config.family, names.TABLE)
        if found is None or not is_whole(self._config.family, found):
            return (_unusable(found),), False
        elements = contents_of(found)
        drifts = (
            *chain_drifts(self.chains, self._baseline, found.chains),
            *contents_drifts(self.held, elements),
        )
        if drifts or not trust:
            self._adopt(elements, found)
        else:
            self._baseline = found.chains
        named = tuple(drift for drift in drifts if drift.object not in self.unsure)
        self.unsure.clear()
        return named, True

    def recognise(self, chains: Mapping[str, Chain]) -> None:
        """Record the rules of those chains that the last reading found just as they would be written.

        Each chain that is written again costs the kernel a visit to every element of the maps that it reads.
        """
        for name, rules in chains.items():
            if name not in self._found or self.chains.get(name) is not None:
                continue
            if is_listed(self._config, rules, self._found[name]):
                self.chains[name] = rules
        self._found = {}

    def make(self) -> None:
        """Make the table without services; replace an existing one."""
        script = Script(self._config)
        script.remove_table()
        script.declare(self._config)
        self._base(script)

    def exchange(self, chains: Mapping[str, Chain], wanted: Contents) -> None:
        """Replace the table by a complete new one, in one transaction, so that packets never see it empty."""
        script = Script(self._config)
        script.remove_table()
        script.declare(self._config)
        script.chains(chains)
        script.base(self._config)
        for container, elements in wanted.items():
            script.add_elements(container, elements)
        self._commit(script)
        self.chains = {}
        self._note_chains({**rules_of(self._config), **chains})
        self.based = True
        for container, elements in wanted.items():
            self.held[container].update(elements)
            self.written["elements"] += len(elements)
        self.written["chains"] += len(self.chains)

    def base(self, config: NftablesConfig, along: Mapping[str, Chain]) -> None:
        """Write the base chains for these settings, and the chains `along` in the same transaction."""
        self._config = config
        script = Script(config)
        script.chains(along)
        self._base(script, along)

    def apply(
        self,
        chains: Mapping[str, Chain],
        doomed: Mapping[str, Sequence[str]],
        fresh: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Write chains, delete elements (keys by container), and add some (values by key by container)."""
        script = Script(self._config)
        script.declare_missing(name for name in fresh if name not in self.containers)
        script.chains(chains)
        for container, keys in doomed.items():
            script.delete_elements(container, keys)
        for container, elements in fresh.items():
            script.add_elements(container, elements)
        if not script:
            return
        changes = itertools.chain(doomed.items(), fresh.items())
        self._commit(script, chains, ((each, key) for each, keys in changes for key in keys))
        self._note_chains(chains)
        self.containers.update(name for name in fresh if names.object_of(name))
        for container, keys in doomed.items():
            for key in keys:
                del self.held[container][key]
        for container, elements in fresh.items():
            self.held[container].update(elements)
        self.written["chains"] += len(chains)
        self.written["elements"] += sum(len(elements) for elements in fresh.values())
        self.written["elements_deleted"] += sum(
            key not in fresh.get(container, ()) for container, keys in doomed.items() for key in keys
        )

    def idle(self, desired: DesiredElements) -> list[str]:
        """What no service needs: chains, referring ones first, then `map NAME` and `set NAME`."""
        base = rules_of(self._config)
        chains = [name for name in self.chains if name not in desired.chains and name not in base]
        # Referring chains first, so that one that cannot be deleted keeps only the chains that it refers to.
        chains.sort(key=lambda name: not name.startswith(LEADING))
        unread = sorted(name for name in self.containers if not desired.reads(name))
        return chains + [what for name in unread if (what := names.object_of(name))]

    def delete_idle(self, some: Iterable[str]) -> None:
        """Delete chains that may refer to each other, and maps and sets; see `idle`."""
        doomed = tuple(some)
        chains = [name for name in doomed if " " not in name]
        objects = [name for name in doomed if " " in name]
        script = Script(self._config)
        script.delete_chains(chains)
        script.delete_containers(objects)
        self._commit(script, chains)
        for name in chains:
            del self.chains[name]
        for each in objects:
            name = each.split(" ")[1]
            self.containers.discard(name)
            self.held.pop(name, None)
        self._baseline = None
        self.written["chains_deleted"] += len(chains)

    def _adopt(self, held: Contents, found: Reading) -> None:
        """Replace the record; picking chains have their expected rules, which is_whole has checked."""
        self.held = held
        self.chains = {name: pick_of(self._config.family, name) for name in found.chains}
        standing = (each.split(" ")[1] for each in found.containers)
        self.containers = {name for name in standing if names.object_of(name)}
        self.based = False
        self._baseline = None
        self._found = found.chains

    def _base(self, script: Script, along: Mapping[str, Chain] | None = None) -> None:
        script.base(self._config)
        chains = {**rules_of(self._config), **(along or {})}
        self._commit(script, chains)
        self._note_chains(chains)
        self.based = True

    def _note_chains(self, chains: Mapping[str, Chain]) -> None:
        if chains:
            self.chains |= chains
            for rules in chains.values():
                self.containers |= names.read_by(rules)
            self._baseline = None

    def _commit(
        self, script: Script, chains: Iterable[str] = (), elements: Iterable[tuple[str, str]] = ()
    ) -> None:
        try:
            with self._watch.writing():
                self._nft.commit(script.transaction())
        except NftError as error:
            if error.kind is NftFailure.INTERRUPTED:
                self.unsure.update(map(chain_object, chains))
                self.unsure.update(element_object(container, key) for container, key in elements)
            raise
        self.written["transactions"] += 1


def _unusable(found: Reading | None) -> Drift:
    """What is wrong with a table that cannot be kept."""
    if found is None:
        return Drift("table", names.TABLE, Difference.MISSING)
    return Drift("table", names.TABLE, Difference.MODIFIED, "dormant" if found.dormant else "not whole")
