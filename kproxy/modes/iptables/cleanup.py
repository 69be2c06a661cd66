"""Remove the iptables rules of every mode that writes rules: both variants, both families."""

from collections.abc import Collection, Mapping

import structlog

from kproxy.addresses import Family
from kproxy.backends.iptables.cleanup import cleanup, left, plan_removal
from kproxy.backends.iptables.names import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.config.model import ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.kernel import nfacct
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables import native
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import (
    FailureKind,
    RestoreError,
    Variant,
    Xtables,
    XtablesStalled,
    XtablesUnavailable,
)
from kproxy.node import route_localnet

log = structlog.stdlib.get_logger(__name__)

_LOCK_SECONDS = 60
"""Seconds for which a command waits for the xtables lock: there is no later attempt."""
_LOCK_SECONDS_RUNNING = 5
"""The same for the agent, whose syncs are blocked during the wait; the next start tries again."""


class RuleLeftovers:
    """The rules left by a mode that writes iptables rules, or by this mode in the other variant.

    A mode that writes rules replaces the others at its first sync, which may remove KUBE-FIREWALL. So its
    presence is recorded before.
    """

    def __init__(self, config: ProxyConfig | None, runner: Runner) -> None:
        self._runner = runner
        replaces = config is not None and traits_of(config.proxy_mode).writes_iptables
        self._firewall_was_present = replaces and route_localnet.is_firewall_present(runner)

    def begin(self, used: Mapping[Family, Variant]) -> None:
        """Remove each family's rules in the variant that is not `used`."""
        if not used:
            remove_rules(self._runner)
            return
        remove_other_rules(used, self._runner)
        if self._firewall_was_present and not route_localnet.is_firewall_present(self._runner):
            route_localnet.close()

    def run_timers(self) -> float | None:
        """Do nothing; no removal is deferred."""
        return None

    def clear(self, *, kube_proxy: bool) -> bool:  # noqa: ARG002 - kube-proxy's rules have the same names
        """Remove all rules; True if they are gone."""
        return remove_rules(self._runner)

    def dissolve(self) -> bool:
        """Do nothing; `clear` has removed everything."""
        return True


def remove_rules(runner: Runner | None = None) -> bool:
    """Remove the rules of the iptables and IPVS modes; False if any could not be (each failure is logged).

    `runner` runs the programs; stopping it ends the removal.
    """
    runner = runner or Runner()
    firewall_was_present = route_localnet.is_firewall_present(runner)
    clean = _remove(dict.fromkeys(Family, tuple(Variant)), runner, lock_wait=_LOCK_SECONDS)
    if firewall_was_present and not route_localnet.is_firewall_present(runner):
        route_localnet.close()
    _remove_counters()
    return clean


def remove_other_rules(used: Mapping[Family, Variant], runner: Runner | None = None) -> bool:
    """Remove, for each family, the rules in the variant that is not `used`.

    Rules in both would act on the same packets. A variant that cannot be read is left alone.
    """
    others = {family: tuple(v for v in Variant if v is not own) for family, own in used.items()}
    return _remove(others, runner or Runner(), lock_wait=_LOCK_SECONDS_RUNNING, readable_only=True)


def _remove(
    chosen: Mapping[Family, Collection[Variant]],
    runner: Runner,
    *,
    lock_wait: int,
    readable_only: bool = False,
) -> bool:
    clean = True
    for family, variants in chosen.items():
        for variant in variants:
            removing = _Removing(family, variant, readable_only=readable_only)
            try:
                tools = find_tools(family, variant, probe=False, runner=runner)
            except XtablesStalled as error:
                removing.failed(error.reason)
            except XtablesUnavailable as error:
                removing.absent(error.reason)
            else:
                removing.remove(SubprocessXtables(family, tools, lock_wait=lock_wait, runner=runner))
            clean = removing.clean and clean
    return clean


class _Removing:
    """The removal of the rules of one family and variant; `clean` is True if nothing was left."""

    def __init__(self, family: Family, variant: Variant, *, readable_only: bool) -> None:
        self.clean = True
        self._family = family
        self._variant = variant
        self._readable_only = readable_only
        self._log = log.bind(family=family.value, variant=variant.value)

    def remove(self, xtables: Xtables) -> None:
        """Remove all rules that can be removed, and check whether any are left."""
        try:
            removals = cleanup(xtables, lambda table, error: self.failed(error.message, table=table))
        except RestoreError as error:
            if self._readable_only and error.kind is FailureKind.MISSING:
                self._log.debug("variant_absent", reason=error.message)
            else:
                self.failed(error.message)
            return
        for removal in removals:
            gone = len(removal.chains) - len(removal.kept)
            self._log.info("removed", table=removal.table, chains=gone, jumps=len(removal.rules))
            for chain, rule in removal.kept.items():
                self._log.warning("chain_delete_failed", table=removal.table, chain=chain, used_by=rule)
                self.clean = False
        if removals and self.clean and not self._readable_only:
            self._read_again(xtables)

    def failed(self, reason: str, **where: str) -> None:
        """Log that something could not be removed."""
        log_failure = self._log.warning if self._readable_only else self._log.error
        log_failure("cleanup_failed", reason=reason, **where)
        self.clean = False

    def absent(self, reason: str) -> None:
        """Handle missing programs: nothing can be removed, so it is an error if kproxy's rules may exist."""
        self._log.debug("variant_absent", reason=reason)
        if self._variant is not Variant.NFT or self._readable_only:
            return
        try:
            chains = {table: native.chains(self._family, table) for table in native.tables(self._family)}
        except OSError as error:
            self._log.debug("tables_unknown", reason=error.strerror)
            return
        found = left(chains)
        if found:
            self.failed(f"{reason}, and {len(found)} chains are there, as {'/'.join(found[0])}")

    def _read_again(self, xtables: Xtables) -> None:
        try:
            remaining = list(plan_removal(xtables.save()))
        except RestoreError as error:
            self.failed(error.message)
            return
        for removal in remaining:
            objects = (*removal.rules, *removal.chains)
            self.failed(f"still there: {len(objects)} rules and chains, as {objects[0]}", table=removal.table)


def _remove_counters() -> None:
    for counter in (INVALID_COUNTER, LOCALHOST_COUNTER):
        try:
            nfacct.delete(counter)
        except nfacct.NfacctError as error:
            log.debug("counter_delete_failed", counter=counter, reason=str(error))
