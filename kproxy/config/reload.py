"""Reload a changed configuration file: apply live settings, name those that need a restart.

kube-proxy exits when its file changes, so every node restarts it. kproxy keeps running. An invalid file
changes nothing; its defects are reported.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from kproxy.config.codec import flatten, replace
from kproxy.config.declarations import live_paths
from kproxy.config.desired import Refusal, ReportedStatus
from kproxy.config.documents import Settings
from kproxy.config.loading import MAX_BYTES, CommandLine, log_settings
from kproxy.config.model import ConfigError, ProxyConfig, mode_name
from kproxy.config.refusals import RefusedMode, RefusedSetting, RejectedConfiguration, SettingRefused
from kproxy.config.schema import KPROXY, KproxyConfiguration, KubeProxyConfiguration
from kproxy.config.settings import Section
from kproxy.config.translate import has_no_effect
from kproxy.sources.directory_watch import DirectoryWatch
from kproxy.text import Joined

log = structlog.stdlib.get_logger(__name__)

S = TypeVar("S", bound=Section)

LIVE = live_paths(KubeProxyConfiguration)
"""Paths of KubeProxyConfiguration that take effect without a restart."""

LIVE_OWN = live_paths(KproxyConfiguration)
"""The same of kproxy's own document."""

SETTLE = 0.1
"""Seconds without further events before a changed file is read."""
RESCAN = 30.0
"""Seconds between checks of the file, as events can be missing: network file systems, symbolic links."""


class Changes(msgspec.Struct, frozen=True):
    """Changes of a file: `settings` is the old with all live changes; both tuples hold paths."""

    settings: Settings
    applied: tuple[str, ...]
    restart: tuple[str, ...]


def changes_between(old: Settings, new: Settings) -> Changes:
    """Divide the changes into live ones and those that need a restart."""
    kube, applied, restart = _merge(old.kube, new.kube, lambda path: path in LIVE or has_no_effect(path))
    own, own_applied, own_restart = _merge(old.own, new.own, lambda path: path in LIVE_OWN)
    prefix = "KproxyConfiguration "
    return Changes(
        Settings(kube, own),
        tuple(applied + [prefix + path for path in own_applied]),
        tuple(restart + [prefix + path for path in own_restart]),
    )


def _merge(old: S, new: S, is_live: Callable[[str], bool]) -> tuple[S, list[str], list[str]]:
    before = dict(flatten(old))
    applied, restart = [], []
    for path, value in flatten(new):
        if value == before[path]:
            continue
        if is_live(path):
            old = replace(old, path, value)
            applied.append(path)
        else:
            restart.append(path)
    return old, applied, restart


class Reloader:
    """Reads the file again when it changed or on request, from any thread.

    `apply` requests the new configuration, returns quickly, and returns the revision of the request. It may
    raise SettingRefused before it has done anything; then the rest is requested.
    """

    def __init__(
        self, command_line: CommandLine, running: Settings, apply: Callable[[ProxyConfig], int]
    ) -> None:
        self._command_line = command_line
        self._running = running
        self._apply = apply
        self._lock = threading.Lock()
        self._seen = running
        self._requested: tuple[int, ProxyConfig] | None = None
        self._reported: ReportedStatus | None = None
        self._rejected: RejectedConfiguration | None = None
        self._refused_mode: RefusedMode | None = None
        self._refused_setting: RefusedSetting | None = None
        self._content: bytes | None = None

    def running(self) -> Settings:
        """The settings in force; callable from any thread."""
        self._look()
        return self._running

    def refused_mode(self) -> RefusedMode | None:
        """The mode that the file names and that could not start; callable from any thread."""
        self._look()
        return self._refused_mode

    def refused_setting(self) -> RefusedSetting | None:
        """The setting of the file that this node cannot obey; callable from any thread."""
        return self._refused_setting

    def rejected(self) -> RejectedConfiguration | None:
        """The defects of the file as last read; None if it is in force. Callable from any thread."""
        return self._rejected

    def follow(self, reported: ReportedStatus, stop: threading.Event) -> None:
        """Read what the run loop reports about requested settings, until `stop` is set and it is woken.

        Where a mode could not start, the mode in force and the rest of the settings are requested. The next
        reload requests the refused mode again, even if the file has not changed.
        """
        self._reported = reported
        seen: Refusal | None = None
        self._look()
        while not stop.is_set():
            seen = reported.wait(seen, stop)
            self._look()

    def _look(self) -> None:
        """Stay in the mode in force if the last request was refused; apply the rest of it.

        A refusal of an older request does not count: the result of the newer one is not known yet.
        """
        refusal = self._reported.refusal if self._reported is not None else None
        if refusal is None:
            return
        with self._lock:
            if self._requested is None or self._requested[0] != refusal.revision:
                return
            kept, refused = refusal.kept, self._requested[1]
            self._refused_mode = RefusedMode(
                datetime.now(UTC), mode_name(refused), mode_name(kept), refusal.reason
            )
            variant = kept.iptables_variant
            running = self._running.with_mode(kept.proxy_mode)
            own = replace(running.own, "iptables.variant", "" if variant is None else variant.value)
            self._running = self._seen = Settings(running.kube, own)
            self._request()

    def reload(self, reason: str, *, first: bool = False) -> None:
        """Read the file and apply the changes; `reason` is for the log.

        `first`: if nothing changed since the start, nothing is logged.
        """
        file = self._command_line.config
        if file is None:
            log.info("nothing_to_reload", reason="no --config")
            return
        self._look()
        with self._lock:
            self._content = _content(file)
            try:
                settings = self._command_line.load()
            except ConfigError as error:
                self._reject(file, error.problems)
                return
            mended, self._rejected = self._rejected is not None, None
            # They are tried again, or no longer in the file.
            self._refused_mode = self._refused_setting = None
            if settings == self._seen and not mended:
                if first:
                    return
                log.info("configuration_unchanged", file=str(file), reason=reason)
                return
            self._take(file, settings, reason)

    def watch(self, stop: threading.Event) -> None:
        """Reload whenever the file changes, until `stop` is set; returns at once without a file.

        The directory is watched, not the file: editors and mounted ConfigMaps replace the file. The first
        step is a reload too, because the file may have changed since the process read it.
        """
        file = self._command_line.config
        if file is None:
            return
        first = True
        with DirectoryWatch(file.absolute().parent, stop, settle=SETTLE, settle_max=1.0, hold=1.0) as watch:
            while not stop.is_set():
                held = watch.held()
                if first or (file.name not in held and _content(file) != self._content):
                    self.reload("the file changed", first=first)
                    first = False
                watch.wait(RESCAN)
                if not watch.has_events:
                    watch.refresh()

    def _reject(self, file: Path, problems: list[str]) -> None:
        if self._rejected is not None and self._rejected.problems == problems:
            return
        self._rejected = RejectedConfiguration(datetime.now(UTC), str(file), problems)
        log.error("configuration_rejected", problems=Joined(problems), effect="the old one stays")

    def _take(self, file: Path, settings: Settings, reason: str) -> None:
        changes = changes_between(self._running, settings)
        self._seen = settings
        self._running = changes.settings
        log.info("configuration_reloaded", file=str(file), reason=reason, applied=list(changes.applied))
        if changes.restart:
            log.warning("restart_needed", settings=list(changes.restart), effect="the old values stay")
        log_settings(settings)
        if changes.applied:
            self._request()

    def _request(self) -> None:
        config = self._command_line.resolve(self._running)
        try:
            self._requested = self._apply(config), config
        except SettingRefused as refused:
            setting = f"{KPROXY[1]} {refused.path}"
            log.error("setting_refused", setting=setting, reason=refused.reason, effect="the old value stays")
            self._refused_setting = RefusedSetting(datetime.now(UTC), setting, refused.reason)
            # The next reload tries it again, even if the file has not changed.
            self._running, self._seen = (
                Settings(each.kube, replace(each.own, refused.path, refused.kept), each.obsolete)
                for each in (self._running, self._seen)
            )
            self._request()


def _content(file: Path) -> bytes | None:
    """The file's bytes up to the limit; None if it cannot be read, which a reload reports."""
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError:
        return None
