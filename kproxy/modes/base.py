"""The seam between the run loop and a proxy mode: what it finds in the kernel and builds for each family."""

from collections.abc import Mapping
from typing import Protocol

from kproxy.addresses import Family
from kproxy.backends.core.base import Backend, Drift, Measurement
from kproxy.config.model import ProxyConfig
from kproxy.kernel.links import AddressNews
from kproxy.kernel.xtables.types import Variant
from kproxy.node.facts import FamilyFacts


class ModeUnavailable(RuntimeError):
    """The mode cannot run on this node; the message says why and what would help."""


class NoFamilyUsable(ModeUnavailable):
    """Neither IP family can be served on this node; `reasons` says why for each."""

    def __init__(self, reasons: Mapping[Family, str]) -> None:
        super().__init__("; ".join(f"{family}: {reason}" for family, reason in reasons.items()))
        self.reasons = reasons


class Mode(Protocol):
    """One way of programming this node."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that can be served here."""

    @property
    def variants(self) -> Mapping[Family, Variant]:
        """The iptables variant in which each family's rules are written; empty if none are."""

    def configure(self, family: Family, facts: FamilyFacts) -> Backend:
        """The backend of a family, made on the first call and given new facts on later ones."""

    def reconfigure(self, config: ProxyConfig) -> None:
        """Take new settings of the operator; every family is configured anew after it.

        What cannot be used is logged and stays as it was.
        """

    def on_first_sync(self) -> None:
        """Every family has been synced for the first time: what another mode left may go.

        Whether this process ran that mode or one before it, which may have been killed at any moment.
        """

    def run_timers(self) -> float | None:
        """Do what time asks for; return the seconds until this wants to be called again, None if never."""

    def compare_addresses(self, news: AddressNews) -> Mapping[Family, tuple[Drift, ...]]:
        """Compare the mode's own addresses with the kernel's where the news are not what it did itself.

        What drifted is pending again. Raises CheckError.
        """

    def measure(self, family: Family, *, traffic: bool) -> Measurement:
        """Count rules, and `traffic` too; runs beside the run loop, on one thread at a time.

        Raises MeasureError.
        """
