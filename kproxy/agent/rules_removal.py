"""Take away the iptables rules of every mode that has some: both variants, both families."""

from collections.abc import Collection, Mapping

import structlog

from kproxy.addresses import Family
from kproxy.backends.iptables.cleanup import cleanup
from kproxy.backends.iptables.render import INVALID_COUNTER, LOCALHOST_COUNTER
from kproxy.kernel import nfacct
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import RestoreError, Variant, XtablesUnavailable

log = structlog.stdlib.get_logger(__name__)

_LOCK_SECONDS = 60  # nobody comes back to what a removal could not do, so it waits longer than a sync


def remove_rules() -> bool:
    """Remove the rules of the iptables and IPVS modes; False if any could not be (each failure is logged)."""
    clean = _remove(dict.fromkeys(Family, tuple(Variant)))
    _remove_counters()
    return clean


def remove_former_rules(former: Mapping[Family, Variant], used: Mapping[Family, Variant]) -> bool:
    """Remove rules in `former` variants, but for families that have theirs in the same one now."""
    return _remove({f: (variant,) for f, variant in former.items() if used.get(f) is not variant})


def _remove(chosen: Mapping[Family, Collection[Variant]]) -> bool:
    clean = True
    for family, variants in chosen.items():
        for variant in variants:
            try:
                tools = find_tools(family, variant, probe=False)
            except XtablesUnavailable as error:
                log.debug("variant_absent", family=family.value, variant=variant.value, reason=error.reason)
                continue
            try:
                removals = cleanup(SubprocessXtables(family, tools, lock_wait=_LOCK_SECONDS))
            except RestoreError as error:
                log.error("cleanup_failed", family=family.value, variant=variant.value, reason=error.message)
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
