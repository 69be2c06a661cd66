"""Resolve a command line: read the file, apply the flags that count, report every defect."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog
import yaml

from kproxy.config import loopback
from kproxy.config.codec import Defect, encode
from kproxy.config.documents import Settings, read_documents
from kproxy.config.flags import apply_flags, counts_with_file, read_process
from kproxy.config.model import ConfigError, ProxyConfig
from kproxy.config.schema import KPROXY, KUBE_PROXY, KproxyConfiguration
from kproxy.config.settings import Section
from kproxy.config.translate import proxy_config, unknown_gates, unrestricted, without_effect

if TYPE_CHECKING:
    from kproxy.sources.recording import Recording

log = structlog.stdlib.get_logger(__name__)

MAX_BYTES = 1024 * 1024
"""The largest file that is read; a ConfigMap holds no more."""


class FileError(ConfigError):
    """The configuration file is invalid; `problems` has every defect."""

    def __init__(self, file: Path, problems: list[str]) -> None:
        super().__init__([f"{file}: {problem}" for problem in problems])


class CommandLine(msgspec.Struct, frozen=True):
    """The command line: the file of --config, and flags by name without dashes.

    `flags` holds the flags of the command line and the environment, without defaults; `refused` has the
    defects of those whose value is not of the flag's type. `variables` names the environment variable of each
    flag whose value came from one.
    """

    config: Path | None = None
    flags: Mapping[str, object] = {}
    refused: tuple[Defect, ...] = ()
    variables: Mapping[str, str] = {}

    @property
    def ignored(self) -> list[str]:
        """Flags that --config overrides."""
        if self.config is None:
            return []
        return sorted(f"--{flag}" for flag in self.flags if not counts_with_file(flag))

    def load(self, base: Settings | None = None) -> Settings:
        """Read the file now and put the flags over it.

        Without a file, the settings of the recording of --replay count, without both `base`. Raises
        FileError for a file, ConfigError for flags; each names every defect.
        """
        settings = self._recorded(base or Settings()) if self.config is None else self._read(self.config)
        counted = {
            flag: value for flag, value in self.flags.items() if self.config is None or counts_with_file(flag)
        }
        settings, defects = apply_flags(settings, counted)
        if "manifests" in counted and "kubeconfig" in counted:
            defects.append(Defect("--manifests", "excludes --kubeconfig"))
        defects += read_process(self.flags)[1]
        sources = [each for each in ("manifests", "kubeconfig", "master") if each in self.flags]
        if "replay" in self.flags and sources:
            defects.append(Defect("--replay", f"excludes {', '.join(f'--{each}' for each in sources)}"))
        if self.refused or defects:
            raise ConfigError([str(defect) for defect in (*self.refused, *defects)])
        return settings

    def _recorded(self, base: Settings) -> Settings:
        """The settings of the recording, if one is replayed, else `base`."""
        recording = self._recording()
        if recording is None or not recording.documents:
            return base
        text = "\n---\n".join(msgspec.json.encode(each).decode() for each in recording.documents)
        settings, defects = read_documents(text)
        if defects:
            raise FileError(Path(str(self.flags["replay"])), [f"settings: {defect}" for defect in defects])
        return settings

    def _recording(self) -> "Recording | None":
        """The recording of --replay. Raises FileError, ConfigError if it cannot be opened."""
        from kproxy.sources.recording import RecordingError, read_recording

        named = self.flags.get("replay")
        if not named:
            return None
        try:
            return read_recording(Path(str(named)))
        except RecordingError as error:
            raise FileError(Path(str(named)), [error.reason]) from error
        except OSError as error:
            raise ConfigError([f"--replay: {named}: {error.strerror or error}"]) from error

    def _read(self, file: Path) -> Settings:
        try:
            return read_file(file)
        except FileError as error:
            variable = self.variables.get("config")
            if variable is None or not isinstance(error.__cause__, OSError):
                raise
            raise FileError(file, [f"{error.__cause__.strerror} (the file that {variable} names)"]) from error

    def resolve(self, settings: Settings) -> ProxyConfig:
        """Resolve settings and process flags."""
        process, _ = read_process(self.flags)
        recording = self._recording()
        if recording is not None and process.at > recording.events:
            raise ConfigError([f"--at: {process.at} is more than the last event, {recording.events}"])
        return proxy_config(
            settings,
            host=socket.gethostname() if recording is None else recording.header.node,
            master=process.master,
            once=process.once,
            once_timeout=process.timeout,
            replay=process.replay,
            replay_until=process.at,
        )

    def check_files(self, config: ProxyConfig) -> None:
        """Raise FileError, or ConfigError for a flag, if the kubeconfig cannot be read."""
        if config.kubeconfig is None or os.access(config.kubeconfig, os.R_OK):
            return
        problem = f'"{config.kubeconfig}" does not exist or cannot be read'
        if self.config is not None:
            raise FileError(self.config, [f"clientConnection.kubeconfig: {problem}"])
        raise ConfigError([f"--kubeconfig: {problem}"])


def read_file(path: Path) -> Settings:
    """Read both documents of a file. Raises FileError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise FileError(path, [error.strerror or str(error)]) from error
    except UnicodeDecodeError as error:
        raise FileError(path, [f"is not UTF-8: {error.reason} at byte {error.start}"]) from error
    if len(data) > MAX_BYTES:
        raise FileError(path, [f"is larger than {MAX_BYTES} bytes"])
    settings, defects = read_documents(text)
    if defects:
        raise FileError(path, [str(defect) for defect in defects])
    return settings


def write_file(path: Path, settings: Settings) -> None:
    """Write settings so that `read_file` returns equal ones. Raises OSError."""
    documents = [document(KUBE_PROXY, settings.kube)]
    if settings.own != KproxyConfiguration():
        documents.append(document(KPROXY, settings.own))
    path.write_text(yaml.safe_dump_all(documents, sort_keys=True, default_flow_style=False))


def log_flags(command_line: CommandLine) -> None:
    """Log the ignored flags."""
    if ignored := command_line.ignored:
        log.warning("flags_ignored", flags=ignored, reason="--config is given, and the file counts")


def log_settings(settings: Settings) -> None:
    """Log settings without effect, and families whose node ports are not restricted."""
    if paths := [*without_effect(settings.kube), *settings.obsolete]:
        log.info("settings_without_effect", settings=sorted(paths))
    if gates := unknown_gates(settings.kube):
        log.warning("unknown_feature_gates", gates=gates)
    if families := unrestricted(settings.kube):
        log.warning(
            "node_ports_everywhere", families=families, reason="nodePortAddresses has no CIDR of theirs"
        )
    config = proxy_config(settings, host="")
    if ranges := loopback.unserved(config):
        log.warning("node_ports_not_on_loopback", ranges=list(ranges), reason=loopback.why_unserved(config))


def document(named: tuple[str, str], section: Section) -> dict[str, object]:
    """A document as a file has it; `named` is its apiVersion and kind."""
    return {"apiVersion": named[0], "kind": named[1]} | encode(section)
