"""The applied state of the IPVS mode: the record of the kernel, when it is stale, and drift by others.

Reading thousands of virtual servers is expensive. So the kernel is read at the start and after a failure, and
compared in parts periodically; otherwise the record of what was written is used.
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
    """One family's record of the kernel; objects that may differ are marked as pending in `desired`.

    `lost`: addresses that others removed from the device. Virtual servers at an address in one of the
    `excluded` CIDRs count as foreign unless a service needs them. `device`: the device is made if missing.
    """

    def __init__(
        self,
        family: Family,
        kernel: KernelHandles,
        desired: Desired,
        excluded: Collection[str],
        *,
        device: bool,
    ) -> None:
        self.excluded = tuple(excluded)
        self.lost: set[str] = set()
        self._family = family
        self._kernel = kernel
        self._desired = desired
        self._device = device
        self._sets = sets(family)
        self._record: KernelRecord | None = None
        self._unsure: set[str] = set()
        self._theirs: set[ServerId] = set()
        self._looks_for_foreign = False
        self._addresses_known = True
        self._device_known = False

    @property
    def record(self) -> KernelRecord:
        """The objects that the kernel holds; `observe` must be called first."""
        assert self._record is not None, "observe() comes first"  # noqa: S101
        return self._record

    @property
    def idle(self) -> bool:
        """Whether the record holds no virtual server and no address."""
        record = self._record
        return record is not None and not record.servers and not record.addresses

    def refresh(self) -> None:
        """Make the next `prepare` check whether foreign virtual servers still exist."""
        self._looks_for_foreign = True

    @contextmanager
    def risking(self, objects: Iterable[str]) -> Iterator[None]:
        """Surround a request that changes objects; if its outcome is unknown, they do not count as drift."""
        try:
            yield
        except KERNEL_ERRORS:
            self._unsure.update(objects)
            raise

    def leave_alone(self, server: ServerId) -> None:
        """Record a virtual server that another program made since the last `look` as foreign."""
        self.record.foreign.add(server)
        self._theirs.add(server)

    def observe(self, *, compare: bool) -> tuple[Drift, ...]:
        """Read the kernel; create sets and the device if they are missing.

        With `compare`, return the changes by others since the former record, without objects of requests
        whose outcome is unknown. Virtual servers of the former record are kproxy's, whatever sets say.
        """
        self._device_known = False
        self._ensure_device()
        for spec in self._sets.all:
            self._create(spec)
        found = self._observe()
        drifts: tuple[Drift, ...] = ()
        if compare and self._record is not None:
            named = differences(self._record, found)
            drifts = tuple(drift for drift in named if drift.object not in self._unsure)
        self._unsure.clear()
        self._record = found
        desired = self._desired
        desired.touch_everything()
        desired.servers |= found.servers.keys()
        desired.addresses |= found.addresses
        desired.members.update((spec, entry) for spec, entries in found.members.items() for entry in entries)
        return drifts

    def prepare(self) -> None:
        """Make the device again if others deleted it; forget foreign virtual servers that are gone."""
        self._ensure_device()
        record = self.record
        if record.foreign and self._looks_for_foreign:
            record.foreign &= self._kernel.ipvs.servers(self._family).keys()
            self._theirs &= record.foreign
        self._looks_for_foreign = False

    def _ensure_device(self) -> None:
        if self._device and not self._device_known:
            if self._kernel.device.ensure():
                log.info("device_created", device=self._kernel.device.name)
            self._device_known = True

    def lacks_sets(self) -> bool:
        """Whether a set is missing that rules refer to; without it, the kernel refuses the rules."""
        return not {spec.name for spec in self._sets.all} <= self._kernel.ipset.headers().keys()

    def _create(self, spec: SetSpec) -> None:
        """Create a set; replace one of the same name and another type."""
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
        """Compare the kernel with the record; return the drift.

        Destinations are compared only for servers with `details_of`. Unless `full`, sets are compared by size
        only, and addresses not at all, because the kernel sends events for them.
        """
        expected = self.record
        detailed = set(filter(details_of, expected.servers))
        found = self._observe(detailed.__contains__, None if full else expected)
        return differences(expected, found, detailed.__contains__)

    def compare_addresses(self, events: Mapping[str, bool] | None) -> tuple[Drift, ...]:
        """Compare the device's addresses with the record; return the drift and mark it as pending.

        `events` maps addresses of which events came to whether the device has them; if that equals the
        record, nothing is read. None: events were lost.
        """
        record, desired = self.record, self._desired
        if events is not None and all((ip in record.addresses) is there for ip, there in events.items()):
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
            frozenset() if self._record is None else self._record.servers.keys(),
            self._theirs,
            lambda server: self._desired.owner(server) is not None,
            details_of=details_of,
            trusted=trusted,
            addresses=trusted.addresses if trusted is not None and self._addresses_known else None,
        )
