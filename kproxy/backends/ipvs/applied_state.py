"""What the kernel is known to hold, when that can be believed no more, and what others changed meanwhile.

Reading thousands of virtual servers is dear, so the kernel is read at the start and after a failure, and
compared in parts now and then; in between, the record of what was written stands for it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from kproxy.addresses import Family
from kproxy.backends.core.base import Drift
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.handles import KERNEL_ERRORS, KernelHandles
from kproxy.backends.ipvs.names import sets
from kproxy.backends.ipvs.record import KernelRecord, differences, membership, observe
from kproxy.kernel.ipset.types import Entry, IpsetError, IpsetUnavailable, SetSpec
from kproxy.kernel.ipvs.types import ServerId

log = structlog.stdlib.get_logger(__name__)


class AppliedState:
    """One family's record of the kernel; what it finds there that may differ is pending in `desired`.

    `drifts` is what the last look found to have been changed by others, and `lost` the addresses that others
    took from the device. Virtual servers at an address in one of the `excluded` CIDRs count as somebody
    else's unless they are wanted.
    """

    def __init__(
        self, family: Family, kernel: KernelHandles, desired: Desired, excluded: Collection[str]
    ) -> None:
        self.excluded = tuple(excluded)
        self.drifts: tuple[Drift, ...] = ()
        self.lost: set[str] = set()
        self._family = family
        self._kernel = kernel
        self._desired = desired
        self._sets = sets(family)
        self._record: KernelRecord | None = None
        self._stale: KernelRecord | None = None
        self._unsure: set[str] = set()
        self._made: frozenset[ServerId] = frozenset()
        self._theirs: set[ServerId] = set()
        self._looks_for_foreign = False
        self._addresses_known = True
        self._device_known = False

    @property
    def record(self) -> KernelRecord:
        """What the kernel holds; `look()` comes first."""
        assert self._record is not None, "look() comes first"  # noqa: S101
        return self._record

    @property
    def idle(self) -> bool:
        """Whether nothing of ours is known to be in the kernel."""
        record = self._record
        return record is not None and not record.servers and not record.addresses

    def invalidate(self) -> None:
        """Forget what the kernel holds, but not which virtual servers are ours; the next look reads it."""
        if self._record is not None:
            self._made = frozenset(self._record.servers)
        self._record = self._stale = None

    def fail(self) -> None:
        """As `doubt`, but the next look names what is not as it was left; what was under way may be so."""
        record = self._record or self._stale
        self.invalidate()
        self._stale = record

    def retry(self) -> None:
        """Let the next look see whether virtual servers of others are still there."""
        self._looks_for_foreign = True

    @contextmanager
    def risking(self, objects: Iterable[str]) -> Iterator[None]:
        """Let the kernel change objects; if it does not tell what came of it, they may be in either state."""
        try:
            yield
        except KERNEL_ERRORS:
            self._unsure.update(objects)
            raise

    def leave_alone(self, server: ServerId) -> None:
        """Somebody has made a virtual server since we looked: it is theirs."""
        self.record.foreign.add(server)
        self._theirs.add(server)

    def look(self, *, device: bool = True) -> bool:
        """Read the kernel if it is not known; True if it was read. Makes the sets and, if asked, a device."""
        kernel, record = self._kernel, self._record
        self.drifts = ()
        if device and (record is None or not self._device_known):
            if kernel.device.ensure():
                log.info("device_created", device=kernel.device.name)
            self._device_known = True
        if record is not None:
            if record.foreign and self._looks_for_foreign:
                record.foreign &= kernel.ipvs.servers(self._family).keys()
                self._theirs &= record.foreign
            self._looks_for_foreign = False
            return False
        for spec in self._sets.all:
            self._create(spec)
        found = self._observe()
        if self._stale is not None:
            drifts = differences(self._stale, found)
            self.drifts = tuple(drift for drift in drifts if drift.object not in self._unsure)
        self._stale = None
        self._unsure.clear()
        self._record = found
        desired = self._desired
        desired.touch_everything()
        desired.servers |= found.servers.keys()
        desired.addresses |= found.addresses
        desired.members.update((spec, entry) for spec, entries in found.members.items() for entry in entries)
        return True

    def lacks_sets(self) -> bool:
        """Whether a set is missing that rules name: without it, the kernel takes none of them."""
        return not {spec.name for spec in self._sets.all} <= self._kernel.ipset.headers().keys()

    def _create(self, spec: SetSpec) -> None:
        """Make a set, also in the place of one of that name and another type."""
        ipset = self._kernel.ipset
        try:
            ipset.create(spec)
        except IpsetUnavailable:
            raise
        except IpsetError as error:
            log.warning("set_replaced", set=spec.name, reason=str(error))
            ipset.destroy(spec.name)
            ipset.create(spec)

    def check(self, details_of: Callable[[ServerId], bool], *, full: bool) -> tuple[Drift, ...]:
        """Compare the kernel with the record; what differs is pending again.

        Destinations are compared of servers with `details_of` only, and unless `full`, sets by their size
        and addresses not at all, for news of those come at once.
        """
        expected = self._record
        if expected is None:
            return ()
        detailed = set(filter(details_of, expected.servers))
        found = self._observe(detailed.__contains__, None if full else expected)
        drifts = differences(expected, found, detailed.__contains__)
        if drifts:
            self.invalidate()
        return drifts

    def compare_addresses(self, told: Mapping[str, bool] | None) -> tuple[Drift, ...]:
        """Compare the device's addresses with the record; what differs is pending again.

        `told` says of some whether the device has them, by news; nothing is read if that is as recorded.
        """
        record, desired = self._record, self._desired
        if record is None:
            return ()
        if told is not None and all((ip in record.addresses) is there for ip, there in told.items()):
            return ()
        self._addresses_known = False
        found = set(self._kernel.device.addresses(self._family))
        self._addresses_known = True
        changed = record.addresses ^ found
        desired.addresses |= changed
        desired.members.update((self._sets.addresses, Entry(ip)) for ip in changed)
        self.lost |= record.addresses - found
        drifts = membership("address", record.addresses, found)
        record.addresses = found
        self._device_known = self._device_known and not drifts
        return tuple(sorted(drifts))

    def _observe(
        self, details_of: Callable[[ServerId], bool] = lambda _: True, trusted: KernelRecord | None = None
    ) -> KernelRecord:
        return observe(
            self._family,
            self._kernel,
            self.excluded,
            self._made,
            self._theirs,
            lambda server: self._desired.owner(server) is not None,
            details_of=details_of,
            trusted=trusted,
            addresses=trusted.addresses if trusted is not None and self._addresses_known else None,
        )
