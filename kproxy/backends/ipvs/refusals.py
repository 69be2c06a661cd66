"""What the kernel refused: put aside with the reason, so that every other service gets what it wants.

A refusal may only say that the kernel is not as it was thought to be. So the first one in a sync is not
believed: it raises StaleStateError, and what the kernel refuses after it has been read again counts.
"""

from collections.abc import Iterable

import structlog

from kproxy.addresses import Family
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.render import Member
from kproxy.kernel.ipvs.types import ServerId

log = structlog.stdlib.get_logger(__name__)


class StaleStateError(Exception):
    """The kernel refused what should have been possible: look at what it holds before judging."""


class Refusals:
    """One family's refusals; `believed` once the kernel has been read for this sync.

    `services` says of services why the kernel did not take them, `stuck` of objects that nobody wants any
    more why they could not be removed.
    """

    def __init__(self, family: Family, desired: Desired) -> None:
        self.believed = False
        self.services: dict[str, str] = {}
        self.leftovers: dict[ServerId | Member | str, str] = {}
        self._family = family
        self._desired = desired

    def check_current(self, told: str) -> None:
        """Raise StaleStateError unless refusals are believed."""
        if not self.believed:
            raise StaleStateError(told)

    def refuse(self, keys: Iterable[str], told: str) -> None:
        """Put services aside."""
        for key in keys:
            if key not in self.services:
                self.services[key] = told
                log.error("service_quarantined", family=self._family.value, service=key, reason=told)

    def add_leftover(self, what: ServerId | Member | str, told: str) -> None:
        """Note what could not be removed, a `str` being an address: no service is to blame for it."""
        self.leftovers[what] = told
        log.error("removal_refused", family=self._family.value, reason=told)

    def touch(self) -> None:
        """Count all that was refused as changed, so that it is looked at again."""
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
        """Let the next sync try the services again."""
        for key in self.services:
            self._desired.touch_service(key)
        self.services.clear()
