"""What a backend is given for one step of a sync: which services to leave alone, and where to report.

An interface may raise its own errors; `Failure` says what such an error means for the reconciler.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from kproxy.backends.core.base import Drift
from kproxy.plan.model import ServicePlan


class StaleStateError(Exception):
    """The kernel does not hold what the applied state says: it must be read again."""


class Failure(msgspec.Struct, frozen=True):
    """The meaning of an error of a kernel interface.

    `refused`: the kernel refused an object of the batch, and applied nothing of it. `stale`: it is unknown
    what was applied. `kind` is one word, or "".
    """

    message: str
    kind: str = ""
    refused: bool = False
    stale: bool = True

    @property
    def text(self) -> str:
        """Kind and message."""
        return f"{self.kind}: {self.message}" if self.kind else self.message


class Observation(msgspec.Struct, frozen=True):
    """The kernel as read: what others changed, and the services that are not applied as desired.

    `rewritten`: everything had to be written anew and was, quarantined services included.
    """

    pending: Collection[str]
    drifts: tuple[Drift, ...] = ()
    rewritten: bool = False


class Comparison(msgspec.Struct, frozen=True):
    """The result of a check for drift; `pending` is None if the kernel must be read again as a whole."""

    drifts: tuple[Drift, ...] = ()
    pending: Collection[str] | None = None


class DesiredChange(msgspec.Struct, frozen=True):
    """The services whose desired objects changed; `stale`: all objects have to be compared."""

    changed: Collection[str]
    stale: bool = False


Changes = Sequence[tuple[ServicePlan | None, ServicePlan]]
"""The former plan of each service, if it had one, and the new one, without ports if the service is gone."""


class SyncWork(Protocol):
    """One step of a sync, as the backend sees it.

    `written` and `rules` count what was written, by kind and by table. `held`: quarantined services that are
    not tried now; they keep their objects. `postponed`: leftovers not to be tried now, with their reasons.
    """

    written: Counter[str]
    rules: Counter[str]

    @property
    def held(self) -> Collection[str]:
        """See above."""

    @property
    def postponed(self) -> Mapping[str, str]:
        """See above."""

    @property
    def limited(self) -> bool:
        """Whether the sync has a limited time."""

    @property
    def expired(self) -> bool:
        """Whether that time is over."""

    @property
    def refusals(self) -> int:
        """The number of services refused in this sync so far."""

    def refuse(self, keys: Iterable[str], reason: str) -> None:
        """Quarantine services whose own request the kernel refused."""

    def bisect(
        self,
        keys: Sequence[str],
        attempt: Callable[[Sequence[str]], None],
        write_otherwise: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Write a batch of services; find and quarantine those at fault if the kernel refuses it.

        `write_otherwise` is called before a service is quarantined; it returns whether it wrote the service
        in another way.
        """

    def bisect_leftovers(
        self, names: Sequence[str], attempt: Callable[[Sequence[str]], None]
    ) -> dict[str, str]:
        """Delete a batch of objects; return those that the kernel would not delete, with the reason."""

    def check_refusal(self, reason: str) -> None:
        """Raise StaleStateError if a refusal may only mean that the applied state is stale.

        The kernel is read a second time at most once in a sync, so that a bad object is found even if others
        write constantly; and not for a service that was refused before for the same reason.
        """

    def resync(self, reason: str) -> None:
        """Raise StaleStateError, unless the kernel was read a second time in this sync."""


class KernelObjects(Protocol):
    """One family's objects in the kernel, in batch form. It keeps the desired objects and the applied state.

    Keys are those of services, or of other units that are written or refused as one. Every method that gets a
    SyncWork, and `drift`, may raise one of `errors`.
    """

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The errors of the kernel interfaces."""

    @property
    def degraded(self) -> Mapping[str, str]:
        """The services that are served with a part missing, and the part."""

    def explain(self, error: Exception) -> Failure:
        """The meaning of one of `errors`."""

    def foreign_writes(self) -> int | None:
        """The number of writes by others so far; None if they cannot be counted."""

    def observe(self, work: SyncWork, *, compare: bool) -> Observation:
        """Read the kernel into the applied state. With `compare`, name changes since the former record."""

    def apply(self, work: SyncWork, keys: Sequence[str]) -> Collection[str]:
        """Write what all services share, then these services; report those that the kernel refuses.

        Return the services that are not written, or in part, because the time of the sync is over.
        """

    def prune(self, work: SyncWork) -> Mapping[str, str]:
        """Delete objects that no service needs; return all that remain, with the reason."""

    def drift(self, *, quiet: bool, full: bool) -> Comparison | None:
        """Compare the kernel with the applied state, and adopt what was found; None if not compared.

        `quiet`: no other program has written since the kernel was read; then it is compared only if `full`.
        """

    def refresh(self) -> None:
        """Forget which capabilities the kernel lacks: what was refused for that is tried again."""


class Operations(KernelObjects, Protocol):
    """The objects of services."""

    def set_desired(self, changes: Changes, plans: Mapping[str, ServicePlan]) -> DesiredChange:
        """Replace the desired objects of some services; `plans` are those of all services, as of now."""
