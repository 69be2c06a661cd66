"""Compare the tables of policies as soon as another program commits to nftables.

A table that another program deleted leaves pods open until it is made again, so the next regular comparison,
some seconds later, is too late. The kernel does not say at once which table a transaction changed, and this
process commits too, so a notification only leads to a comparison, which is cheap if nothing foreign was
written.
"""

import contextlib
import os
import select
import threading
from collections.abc import Callable

import structlog

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.kernel.nft.commits import Commits
from kproxy.plan.policy.model import Touched

log = structlog.stdlib.get_logger(__name__)

REST = 0.02
"""Seconds after a notification in which further ones are not looked at: others commit in groups."""

REOPEN = 30.0
"""Seconds until a socket that failed is opened again; regular comparisons go on."""


class CommitWatch:
    """A companion that calls `look` after each transaction of any program; see Companion."""

    name = "policy-commits"

    def __init__(self, config: ProxyConfig, look: Callable[[], None]) -> None:
        self._look = look
        self._on = config.network_policy
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False

    def follow(self, config: ProxyConfig) -> None:
        """Pause while policies are off."""
        self._on = config.network_policy

    def applied(self, family: Family, touched: Touched) -> None:
        """Do nothing: what was applied is known."""

    def wake(self) -> None:
        """End `run` after the stop."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._woken, 1)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` called."""
        try:
            while not stop.is_set():
                try:
                    with Commits() as commits:
                        self._watch(commits, stop)
                except OSError as error:
                    reason = error.strerror or str(error)
                    log.warning("policy_commits_unseen", reason=reason, retry_seconds=REOPEN)
                    stop.wait(REOPEN)
        finally:
            with self._lock:
                self._closed = True
                os.close(self._woken)

    def _watch(self, commits: Commits, stop: threading.Event) -> None:
        poller = select.poll()
        poller.register(commits, select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        if self._on:
            self._look()  # at what was committed before the socket was there
        while not stop.is_set():
            poller.poll()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._woken)
            if commits.seen() and self._on:
                self._look()
                stop.wait(REST)
