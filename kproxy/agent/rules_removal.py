"""Take away the iptables rules of every mode that has some: both variants, both families."""

from collections.abc import Collection, Mapping

import structlog

from kproxy.addresses import Family
from kproxy.agent import localnet
from kproxy.backends.iptables.cleanup import cleanup
from kproxy.backends.iptables.names import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.kernel import nfacct
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, XtablesStalled, XtablesUnavailable

log = structlog.stdlib.get_logger(__name__)

_LOCK_SECONDS = 60
"""How long a command waits for the xtables lock: nobody comes back to what it could not do."""
_LOCK_SECONDS_RUNNING = 5
"""How long the agent does, whose syncs wait meanwhile; the next start comes back to it."""


def remove_rules(runner: Runner | None = None) -> bool:
    """Remove the rules of the iptables and IPVS modes; False if any could not be (each failure is logged).

    A stop of `runner`, which runs the programs, ends it.
    """
    runner = runner or Runner()
    was_guarded = localnet.is_guarded(runner)
    clean = _remove(dict.fromkeys(Family, tuple(Variant)), runner, lock_wait=_LOCK_SECONDS)
    if was_guarded and not localnet.is_guarded(runner):
        localnet.close()
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
    tell = log.warning if readable_only else log.error
    for family, variants in chosen.items():
        for variant in variants:
            try:
                tools = find_tools(family, variant, probe=False, runner=runner)
            except XtablesStalled as error:
                tell("cleanup_failed", family=family.value, variant=variant.value, reason=error.reason)
                clean = False
                continue
            except XtablesUnavailable as error:
                log.debug("variant_absent", family=family.value, variant=variant.value, reason=error.reason)
                continue
            try:
                xtables = SubprocessXtables(family, tools, lock_wait=lock_wait, runner=runner)
                removals = cleanup(xtables)
            except RestoreError as error:
                if readable_only and error.kind is FailureKind.MISSING:
                    log.debug(
                        "variant_absent", family=family.value, variant=variant.value, reason=error.message
                    )
                    continue
                tell("cleanup_failed", family=family.value, variant=variant.value, reason=error.message)
                clean = False
                continue
            for removal in removals:
                log.info(
                    "removed",
                    family=family.value,
                    variant=variant.value,
                    table=removal.table,
                    chains=len(removal.chains) - len(removal.kept),
                    jumps=len(removal.rules),
                )
                for chain, rule in removal.kept.items():
                    log.warning("chain_kept", table=removal.table, chain=chain, used_by=rule)
                    clean = False
    return clean


def _remove_counters() -> None:
    for counter in (INVALID_COUNTER, LOCALHOST_COUNTER):
        try:
            nfacct.delete(counter)
        except nfacct.NfacctError as error:
            log.debug("counter_kept", counter=counter, reason=str(error))
