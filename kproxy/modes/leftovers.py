"""Remove all that kproxy made on this node, in whatever mode."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import structlog

from kproxy import __version__
from kproxy.kernel.processes import Runner
from kproxy.modes.base import ModeSpec
from kproxy.modes.kube_proxy_tables import warn_of_peer_tables
from kproxy.modes.registry import MODES
from kproxy.node.instance import (
    CLEAN_UP_NOW,
    CLEAN_UP_ON_EXIT,
    WAIT_STOPPING,
    Connection,
    Holder,
    Instance,
    InstanceRunning,
    connection,
)

log = structlog.stdlib.get_logger(__name__)

_TAKEN = 10.0
"""Seconds within which a kproxy that runs takes a signal."""


def remove_everything(
    modes: Iterable[ModeSpec] = MODES, *, peer: bool = False, runner: Runner | None = None
) -> bool:
    """Remove what is there; False if anything could not be removed (each failure is logged).

    A stop of `runner`, which runs the programs, ends what takes long.

    kube-proxy's iptables and IPVS modes write the chains, sets and device that kproxy knows as its own; with
    `peer`, the tables of its nftables mode go too; without, they are named and stay.

    Everything goes in two steps: first what carries traffic in each mode, then what says whose that was and
    what rules of another mode may name (IP sets). While a first step of a mode fails, its second one waits.
    """
    if not peer:
        warn_of_peer_tables()
    runner = runner or Runner()
    found = [spec.leftovers(None, runner) for spec in reversed(tuple(modes))]
    cleared = [each.clear(peer=peer) for each in found]
    dissolved = [each.dissolve() for each, done in zip(found, cleared, strict=True) if done]
    return all(cleared) and all(dissolved)


class LeavingError(RuntimeError):
    """A kproxy that runs stands in the way of a cleanup; the message says what to do."""


def clean_up(*, peer: bool = False, stop: bool = False) -> bool:
    """Remove everything while no kproxy runs; with `stop`, let one that runs do so and end first.

    False if anything could not be removed. Raises LeavingError.
    """
    if stop:
        _stop_running()
    with Instance("cleanup", __version__, stopping=True) as instance:
        try:
            instance.acquire(wait=0)
        except InstanceRunning as error:
            raise LeavingError(_remedy(error.holder, stopped=stop)) from error
        return remove_everything(peer=peer)


def clean_up_on_exit() -> None:
    """Ask the kproxy that runs to remove its rules when it ends. Raises LeavingError."""
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
    """Let the kproxy that runs remove its rules and end; nothing is done where none runs."""
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
    """The kproxy that runs and a connection to it, None if none does; its EOFError ends the block."""
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
