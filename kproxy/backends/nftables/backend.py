"""The nftables mode of one family: elements and chains brought into step, one transaction a sync.

The record of what the kernel holds is read from it once, moved forward by every transaction that it took, and
thrown away after any failure that leaves doubt. A transaction is refused as a whole; it is then halved until
the service at fault is found, which keeps what it had while all others get theirs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from kproxy.addresses import Family
from kproxy.backends.base import CheckError, Drift, SyncReport
from kproxy.backends.iptables.watch import ChangeWatch
from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import Chain, pick_of
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.drift import chain_drifts, element_drifts, is_whole
from kproxy.backends.nftables.ledger import Contents, Ledger, Slot, no_contents
from kproxy.backends.nftables.listing import Structure, read_chains, read_elements
from kproxy.backends.nftables.render import NOTHING, ServiceObjects, render_service
from kproxy.backends.nftables.script import Script, rules_of
from kproxy.kernel.nft.types import Nft, NftError, NftFailure
from kproxy.plan.model import ServicePlan

log = structlog.stdlib.get_logger(__name__)

PIECE = 10000
"""Elements per transaction of a big change: for as many, the kernel's commit lock is held about 30 ms."""


class _DoubtfulError(Exception):
    """The kernel refused, but somebody else has written since it was observed: look again before judging."""


class NftablesBackend:
    """One family's table."""

    def __init__(self, config: NftablesConfig, nft: Nft, watch: ChangeWatch, *, piece: int = PIECE) -> None:
        self.family: Family = config.family
        self._config = config
        self._nft = nft
        self._watch = watch
        self._piece = piece
        self._plans: dict[str, ServicePlan] = {}
        self._objects: dict[str, ServiceObjects] = {}
        self._ledger = Ledger()
        self._uses: Counter[str] = Counter()
        self._chains: dict[str, Chain] = {}
        self._pending: dict[str, set[Slot]] = {}
        self._quarantine: dict[str, str] = {}
        self._kept: set[str] = set()
        self._held: Contents | None = None
        self._written_chains: dict[str, Chain | None] = {}
        self._based = False
        self._sweep = False
        self._baseline: Structure | None = None
        self._seen_foreign = 0
        self._looked_again = False

    def update(self, plans: Iterable[ServicePlan]) -> None:
        """Take new desired states; a plan without ports removes its service."""
        for plan in plans:
            if plan.ports:
                self._plans[plan.key] = plan
                self._want(plan.key, render_service(plan, self._config))
            else:
                self._plans.pop(plan.key, None)
                self._want(plan.key, NOTHING)

    def reconfigure(self, config: NftablesConfig) -> None:
        """Take new settings of the same family; the next sync writes what they change."""
        if config == self._config:
            return
        self._config = config
        self._based = False
        for plan in self._plans.values():
            self._want(plan.key, render_service(plan, config))

    def retry(self) -> None:
        """Let the next sync try again the services that were refused, and chains that could not go."""
        self._quarantine.clear()
        self._kept.clear()

    def sync(self) -> SyncReport:
        """Bring the kernel to the desired state, writing only what differs."""
        written: Counter[str] = Counter()
        self._looked_again = False
        try:
            try:
                self._write(written)
            except _DoubtfulError:
                self._held = None
                self._looked_again = True
                self._write(written)
        except NftError as error:
            self._held = None
            return SyncReport(error=f"{error.kind}: {error.message}", changes=_nonzero(written))
        return SyncReport(dict(self._quarantine), None, _nonzero(written))

    def check(self, *, thorough: bool = False) -> tuple[Drift, ...]:
        """Compare the kernel with the record; what differs is named, and written by the next sync.

        Raises CheckError if the table cannot be read.
        """
        if self._held is None:
            return ()
        foreign = self._watch.foreign
        calm = foreign == self._seen_foreign
        if calm and self._baseline is not None and not thorough:
            return ()
        try:
            if calm and not thorough:
                self._baseline = read_chains(self._nft.listing(self.family, names.TABLE, terse=True) or "")
                return ()
            drifts = self._compare()
        except NftError as error:
            raise CheckError(error.message) from error
        self._seen_foreign = foreign
        return drifts

    def tend(self) -> float | None:
        """Nothing here depends on time: the kernel itself forgets clients."""
        return None

    def _want(self, key: str, new: ServiceObjects) -> None:
        old = self._objects.get(key, NOTHING)
        if old == new:
            return
        slots = self._ledger.replace(key, old.elements, new.elements)
        self._pending.setdefault(key, set()).update(slots)
        if self._quarantine.pop(key, None) is not None:
            self._kept.clear()
        for name, rules in new.chains.items():
            self._uses[name] += 1
            self._chains[name] = rules
        for name in old.chains:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name], self._chains[name]
        if new is NOTHING or not new.elements:
            self._objects.pop(key, None)
        else:
            self._objects[key] = new

    def _observe(self, written: Counter[str]) -> Contents:
        """Read the table; where it cannot be kept, one is made anew in its place."""
        self._seen_foreign = self._watch.foreign
        text = self._nft.listing(self.family, names.TABLE)
        chains = read_chains(text or "")
        if text is not None and is_whole(self.family, chains, text):
            held = read_elements(text)
            self._adopt(held, chains)
            return held
        held = no_contents()
        self._adopt(held, ())
        if text is None or not self._exchange(held, written):
            script = Script(self._config)
            script.remove_table()
            script.declare(self._config)
            self._base(script, written)
        return held

    def _exchange(self, held: Contents, written: Counter[str]) -> bool:
        """Put a complete table in the place of another, so that no packet meets an empty one.

        False if it was refused: then the service at fault must be found first, on a table without services.
        """
        script = Script(self._config)
        script.remove_table()
        script.declare(self._config)
        script.fixed(self._config)
        script.chains(self._chains)
        for container, elements in self._ledger.wanted.items():
            script.add_elements(container, elements)
        try:
            self._commit(script)
        except NftError as error:
            if error.kind is not NftFailure.REFUSED:
                raise
            return False
        for container, elements in self._ledger.wanted.items():
            held[container].update(elements)
            written["elements"] += len(elements)
        self._written_chains = {**rules_of(self._config), **self._chains}
        self._based, self._sweep = True, False
        self._pending.clear()
        self._quarantine.clear()
        written["transactions"] += 1
        written["chains"] += len(self._written_chains)
        return True

    def _adopt(self, held: Contents, chains: Iterable[str]) -> None:
        self._held = held
        self._written_chains = {}
        for name in chains:
            picking = pick_of(self.family, name)
            self._written_chains[name] = picking[1] if picking is not None else None
        self._based = False
        self._baseline = None
        self._sweep = True
        self._kept.clear()
        for key, objects in self._objects.items():
            differing = {
                (e.container, e.key)
                for e in objects.elements
                if held[e.container].get(e.key) != self._ledger.wanted[e.container][e.key]
            }
            if differing or objects.chains:
                self._pending.setdefault(key, set()).update(differing)

    def _base(self, script: Script, written: Counter[str]) -> None:
        script.fixed(self._config)
        self._commit(script)
        written["transactions"] += 1
        self._written_chains |= rules_of(self._config)
        self._based = True

    def _write(self, written: Counter[str]) -> None:
        held = self._held if self._held is not None else self._observe(written)
        if not self._based:
            self._base(Script(self._config), written)
        keys = sorted(self._pending.keys() - self._quarantine.keys())
        for group in self._pieces(keys):
            self._bisect(group, lambda some: self._group(held, some, written), self._refuse)
        if self._sweep:
            self._remove_strangers(held, written)
            self._sweep = False
        self._remove_chains(written)

    def _pieces(self, keys: Iterable[str]) -> Iterator[list[str]]:
        """The services in groups whose elements fit into one transaction."""
        group: list[str] = []
        size = 0
        for key in keys:
            group.append(key)
            size += len(self._pending[key])
            if size >= self._piece:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _group(self, held: Contents, keys: Sequence[str], written: Counter[str]) -> None:
        """Write a group of services as one transaction."""
        slots = set().union(*(self._pending[key] for key in keys))
        chains: dict[str, Chain] = {}
        # What a service gives up may be another's from now on, which is perhaps not written yet.
        for key in {*keys, *(owner for slot in slots if (owner := self._ledger.owner(slot)))}:
            objects = self._objects.get(key, NOTHING)
            chains |= {n: r for n, r in objects.chains.items() if self._written_chains.get(n) != r}
        doomed: dict[str, list[str]] = {}
        fresh: dict[str, dict[str, str]] = {}
        for container, key in sorted(slots):
            have = held[container].get(key)
            want = self._ledger.wanted[container].get(key)
            if have == want:
                continue
            if have is not None:
                doomed.setdefault(container, []).append(key)
            if want is not None:
                fresh.setdefault(container, {})[key] = want
        self._apply(held, chains, doomed, fresh, written)
        for key in keys:
            del self._pending[key]

    def _apply(
        self,
        held: Contents,
        chains: Mapping[str, Chain],
        doomed: Mapping[str, Sequence[str]],
        fresh: Mapping[str, Mapping[str, str]],
        written: Counter[str],
    ) -> None:
        script = Script(self._config)
        script.chains(chains)
        for container, keys in doomed.items():
            script.delete_elements(container, keys)
        for container, elements in fresh.items():
            script.add_elements(container, elements)
        if not script:
            return
        self._commit(script)
        self._written_chains |= chains
        if chains:
            self._baseline = None
        for container, keys in doomed.items():
            for key in keys:
                del held[container][key]
        for container, elements in fresh.items():
            held[container].update(elements)
        written["transactions"] += 1
        written["chains"] += len(chains)
        written["elements"] += sum(len(elements) for elements in fresh.values())
        written["elements_deleted"] += sum(
            key not in fresh.get(container, ()) for container, keys in doomed.items() for key in keys
        )

    def _remove_strangers(self, held: Contents, written: Counter[str]) -> None:
        """Delete elements that no service wants, such as those of services that went while nobody looked."""
        kept = {slot for key in self._quarantine for slot in self._pending.get(key, ())}
        for container, elements in held.items():
            wanted = self._ledger.wanted[container]
            extra = [key for key in elements if key not in wanted and (container, key) not in kept]
            for start in range(0, len(extra), self._piece):
                self._apply(held, {}, {container: extra[start : start + self._piece]}, {}, written)

    def _remove_chains(self, written: Counter[str]) -> None:
        """Delete chains that nothing leads to any more; one that is still in use is left for a later sync."""
        fixed = rules_of(self._config).keys()
        idle = [
            name
            for name in self._written_chains
            if name not in self._chains and name not in fixed and name not in self._kept
        ]

        def delete(some: Sequence[str]) -> None:
            script = Script(self._config)
            script.delete_chains(some)
            self._commit(script)
            for name in some:
                del self._written_chains[name]
            self._baseline = None
            written["chains_deleted"] += len(some)

        def keep(name: str, error: NftError) -> None:
            self._kept.add(name)
            log.info("chain_kept", family=self.family.value, chain=name, reason=error.message)

        # What leads to others goes first, so that one that must stay holds back only what it leads to.
        for some in (
            [n for n in idle if n.startswith(_LEADING)],
            [n for n in idle if not n.startswith(_LEADING)],
        ):
            self._bisect(some, delete, keep)

    def _refuse(self, key: str, error: NftError) -> None:
        self._quarantine[key] = error.message
        log.error("service_refused", family=self.family.value, service=key, reason=error.message)

    def _commit(self, script: Script) -> None:
        with self._watch.writing():
            self._nft.run(str(script))

    def _bisect(
        self,
        items: Sequence[str],
        attempt: Callable[[Sequence[str]], None],
        give_up: Callable[[str, NftError], None],
    ) -> None:
        """Run `attempt` on all items, or on halves while the kernel refuses, down to the single one."""
        if not items:
            return
        try:
            attempt(items)
        except NftError as error:
            if error.kind is not NftFailure.REFUSED:
                raise
            if not self._looked_again and self._watch.foreign != self._seen_foreign:
                raise _DoubtfulError from error
            if len(items) == 1:
                give_up(items[0], error)
                return
            middle = len(items) // 2
            self._bisect(items[:middle], attempt, give_up)
            self._bisect(items[middle:], attempt, give_up)

    def _compare(self) -> tuple[Drift, ...]:
        """Look at everything; where it is not as recorded, the record becomes what was found."""
        text = self._nft.listing(self.family, names.TABLE)
        chains = read_chains(text or "")
        if text is None or not is_whole(self.family, chains, text):
            self._held = None
            return (Drift(f"table {names.TABLE}", "is not there" if text is None else "is not whole"),)
        found = read_elements(text)
        assert self._held is not None  # noqa: S101 - asked only with a record
        drifts = [
            *chain_drifts(self._written_chains, self._baseline, chains),
            *element_drifts(self._held, found),
        ]
        if drifts:
            self._adopt(found, chains)
        else:
            self._baseline = chains
        return tuple(drifts)


_LEADING = ("cluster-", "external-", "local-")
"""Class chains, which lead to those that pick."""


def _nonzero(written: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in written.items() if count}
