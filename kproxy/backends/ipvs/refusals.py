"""Refused requests: the services are quarantined with the reason, and all others are applied.

A refusal may only mean that the record of the kernel is stale. So the first one in a sync raises
StaleStateError; only refusals after the kernel was read again count.
"""

from collections.abc import Iterable

import structlog

from kproxy.addresses import Family
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.render import Member
from kproxy.kernel.ipvs.types import ServerId

log = structlog.stdlib.get_logger(__name__)


class StaleStateError(Exception):
    """The kernel refused a request that the record allows: it may be stale, and the kernel must be read."""


class Refusals:
    """One family's refusals; `current` once the kernel has been read again for this sync.

    `services` maps quarantined services to the reason, `leftovers` maps objects that no service needs and
    that could not be removed to the reason.
    """

    def __init__(self, family: Family, desired: Desired) -> None:
        self.current = False
        self.services: dict[str, str] = {}
        self.leftovers: dict[ServerId | Member | str, str] = {}
        self._family = family
        self._desired = desired

    def check_current(self, reason: str) -> None:
        """Raise StaleStateError unless the record is `current`."""
        if not self.current:
            raise StaleStateError(reason)

    def refuse(self, keys: Iterable[str], reason: str) -> None:
        """Quarantine services."""
        for key in keys:
            if key not in self.services:
                self.services[key] = reason
                log.error("service_quarantined", family=self._family.value, service=key, reason=reason)

    def add_leftover(self, what: ServerId | Member | str, reason: str) -> None:
        """Record an object that could not be removed; a `str` is an address."""
        self.leftovers[what] = reason
        log.error("removal_refused", family=self._family.value, reason=reason)

    def touch(self) -> None:
        """Mark all refused objects as pending."""
        desired = self._desired
        for key in self.services:
            desired.touch_service(key)
        for what in self.leftovers:
            if isinstance(what, ServerId):
                desired.servers.add(what)
            elif isinstance(what, str):
                desired.addresses.add(what)
            else:
                desired.members.add(what)

    def retry(self) -> None:
        """Make the next sync retry the quarantined services."""
        for key in self.services:
            self._desired.touch_service(key)
        self.services.clear()
