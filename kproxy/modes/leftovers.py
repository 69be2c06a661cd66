"""Remove everything that kproxy made on this node, in every mode."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import structlog

from kproxy import __version__
from kproxy.kernel.nft.trace_leftovers import StaleTraceError, remove_leftovers
from kproxy.kernel.processes import Runner
from kproxy.modes.base import ModeSpec
from kproxy.modes.kube_proxy_tables import warn_of_kube_proxy_tables
from kproxy.modes.registry import MODES
from kproxy.node.holder import Connection, Holder, connection
from kproxy.node.instance import CLEAN_UP_NOW, CLEAN_UP_ON_EXIT, WAIT_STOPPING, Instance, InstanceRunning
from kproxy.node.policy_table import remove_policy_tables

log = structlog.stdlib.get_logger(__name__)

_TAKEN = 10.0
"""Seconds within which a running kproxy handles a signal."""


def remove_everything(
    modes: Iterable[ModeSpec] = MODES, *, kube_proxy: bool = False, runner: Runner | None = None
) -> bool:
    """Remove all objects of kproxy; False if any could not be removed (each failure is logged).

    `runner` runs the programs; stopping it ends a long removal.

    kube-proxy's iptables and IPVS modes write the chains, sets and device that kproxy knows as its own; with
    `kube_proxy`, the tables of its nftables mode are removed too; without, they are logged and stay.

    There are two steps: first the objects of each mode that carry traffic, then the marks of ownership and
    the objects to which rules of another mode may refer (IP sets). If the first step of a mode fails, its
    second step is skipped.
    """
    if not kube_proxy:
        warn_of_kube_proxy_tables()
    runner = runner or Runner()
    found = [spec.leftovers(None, runner) for spec in reversed(tuple(modes))]
    cleared = [each.clear(kube_proxy=kube_proxy) for each in found]
    dissolved = [each.dissolve() for each, done in zip(found, cleared, strict=True) if done]
    # Policies go after the services that lead to what they protect.
    rest = [remove_policy_tables(), remove_stale_traces()]
    return all(cleared) and all(dissolved) and all(rest)


def remove_stale_traces() -> bool:
    """Remove what `kproxy trace` left when it was killed; False if that failed (which is logged)."""
    try:
        for name in remove_leftovers():
            log.info("removed", table=name)
    except StaleTraceError as error:
        log.error("cleanup_failed", reason=str(error))
        return False
    return True


class LeavingError(RuntimeError):
    """A running kproxy prevents a cleanup; the message gives the remedy."""


def clean_up(*, kube_proxy: bool = False, stop: bool = False) -> bool:
    """Remove everything while no kproxy runs; with `stop`, a running one does so and ends first.

    False if anything could not be removed. Raises LeavingError.
    """
    if stop:
        _stop_running()
    with Instance("cleanup", __version__, stopping=True) as instance:
        try:
            instance.acquire(wait=0)
        except InstanceRunning as error:
            raise LeavingError(_remedy(error.holder, stopped=stop)) from error
        return remove_everything(kube_proxy=kube_proxy)


def clean_up_on_exit() -> None:
    """Ask the running kproxy to remove its rules when it ends. Raises LeavingError."""
    with _running() as running:
        if running is None:
            raise LeavingError(
                "no kproxy runs in this network namespace; kproxy cleanup removes what one left"
            )
        found, holder = running
        _send(found, holder, CLEAN_UP_ON_EXIT)
        deadline = time.monotonic() + _TAKEN
        report = holder.report
        while report is None or not report.cleanup_on_exit:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LeavingError(f"the kproxy that runs ({holder}) has not answered within {_TAKEN:g} s")
            report = found.next(left) or report
        log.info("cleanup_on_exit", holder=str(holder), effect="its rules are removed when it ends")
        return
    raise LeavingError("the kproxy that ran here ended; kproxy cleanup removes what it left")


def _stop_running() -> None:
    """Make the running kproxy remove its rules and end; do nothing if none runs."""
    with _running() as running:
        if running is None:
            return
        found, holder = running
        log.info("stopping_kproxy", holder=str(holder))
        _send(found, holder, CLEAN_UP_NOW)
        deadline = time.monotonic() + WAIT_STOPPING
        while (left := deadline - time.monotonic()) > 0:
            found.next(left)
        raise LeavingError(f"the kproxy that runs ({holder}) has not ended within {WAIT_STOPPING:g} s")


@contextmanager
def _running() -> Iterator[tuple[Connection, Holder] | None]:
    """A connection to the running kproxy, None if none runs; its EOFError ends the block."""
    with connection() as found, suppress(EOFError):
        try:
            holder = found.holder() if found is not None else None
        except EOFError:
            holder = None
        if found is None or holder is None or holder.uid not in {0, os.geteuid()}:
            yield None
        else:
            yield found, holder


def _send(found: Connection, holder: Holder, number: signal.Signals) -> None:
    try:
        found.send(number)
    except OSError as error:
        raise LeavingError(
            f"the kproxy that runs ({holder}) cannot be reached by a signal from here: "
            f"{error.strerror or error}; run this in its container: kubectl exec POD -- kproxy cleanup"
        ) from error


def _remedy(holder: Holder, *, stopped: bool) -> str:
    if stopped:
        return (
            f"a kproxy was started again ({holder}): what starts it, such as systemd or a DaemonSet, "
            "has to be stopped first"
        )
    return (
        f"a kproxy runs here and would make again what a cleanup removes ({holder}). On a host: "
        "kproxy cleanup --stop lets it remove its rules and end. In a pod, which would be started again: "
        "kproxy cleanup --on-exit, and then take the pod off the node; its rules go with it"
    )
