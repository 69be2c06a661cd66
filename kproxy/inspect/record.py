"""Record what a node sees, for a bug report: objects and events, facts, settings, and the agent's reports.

The command watches by itself, as a second client of the API server: a running agent is not slowed down, and a
node without one can be recorded too.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kproxy import __version__
from kproxy.config.documents import Settings, read_documents
from kproxy.config.loading import document
from kproxy.config.model import ProxyConfig, validate
from kproxy.config.schema import KPROXY, KUBE_PROXY
from kproxy.inspect.agent_client import AgentRefused, AgentUnavailable, get
from kproxy.inspect.changes import PATH as CHANGES
from kproxy.inspect.diff import addresses_here
from kproxy.modes.kinds import kinds_of_files, needed_kinds, wanted_kinds
from kproxy.node.facts import api_addresses
from kproxy.sources.anonymous import anonymize
from kproxy.sources.base import Source
from kproxy.sources.recording import (
    FORMAT,
    AgentReport,
    Entry,
    Header,
    RecordedNode,
    RecordedSettings,
    Recorder,
    Recording,
    write_recording,
)
from kproxy.sources.replay import Held, open_recording
from kproxy.state.kinds import Kind
from kproxy.state.wire import Node

CONFIGZ = "/configz"
REPORTS = ("/status", CONFIGZ, CHANGES)
"""What the agent is asked for; neither has a secret."""

LISTS_SECONDS = 30.0
"""The longest wait for the first lists, if the recording itself is shorter."""

_AGENT_SECONDS = 3.0

_END_SECONDS = 0.5
"""The longest wait for the source's end; one that is just connecting cannot be interrupted."""


class RecordingFailed(Exception):
    """Nothing was written; the message says what is missing."""


class Recorded(msgspec.Struct, frozen=True):
    """What was written. `full`: later events did not fit."""

    events: int
    agent: str
    full: bool = False


def record(
    config: ProxyConfig,
    settings: Settings,
    path: Path,
    *,
    seconds: float,
    address: str,
    anonymous: bool,
    stop: threading.Event,
) -> Recorded:
    """Watch for `seconds` or until `stop`, and write the file.

    With `config.replay` that recording is written again. Raises ConfigError, RecordingFailed, RecordingError
    and the errors of the source.
    """
    validate(config)
    full, agent = False, ""
    if config.replay is not None:
        recording = open_recording(config.replay, config.replay_until)
        recording = recording.until(config.replay_until)
    else:
        recorder, node = _watch(config, seconds, stop)
        reports, agent = _reports(address)
        documents = RecordedSettings((document(KUBE_PROXY, settings.kube), document(KPROXY, settings.own)))
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        header = Header(FORMAT, config.node_name, __version__, created)
        recording = Recording(header, (without_paths(documents), node, *recorder.entries, *reports))
        full = recorder.full
    if anonymous:
        recording = anonymize(recording)
    write_recording(path, recording)
    return Recorded(recording.events, agent, full)


def settings_of_agent(address: str) -> Settings:
    """kube-proxy's document of the running agent, else the defaults; no agent tells its own document."""
    try:
        (found,) = get(address, CONFIGZ, dict[str, Any], _AGENT_SECONDS).values()
        settings, defects = read_documents(msgspec.json.encode(found).decode())
    except (AgentUnavailable, AgentRefused, ValueError):
        return Settings()
    return Settings() if defects else settings


def without_paths(settings: RecordedSettings) -> RecordedSettings:
    """The documents without paths of this machine; the node's name is in the header."""
    kube, own = (dict(each) for each in settings.documents)
    kube["clientConnection"] = {}
    kube["hostnameOverride"] = own["manifests"] = ""
    return RecordedSettings((kube, own))


def _watch(config: ProxyConfig, seconds: float, stop: threading.Event) -> tuple[Recorder, RecordedNode]:
    """Run the source for this time. Raises RecordingFailed if a list of a required kind is missing then."""
    needed = needed_kinds(config)
    recorder = Recorder(needed)
    end = threading.Event()
    work = _Work(config, recorder, end, stop)
    thread = threading.Thread(target=work.run, name="source", daemon=True)
    thread.start()
    if not stop.wait(seconds):
        threading.Thread(target=_pass_on, args=(stop, recorder.complete), daemon=True).start()
        recorder.complete.wait(max(0.0, LISTS_SECONDS - seconds))
    recorder.close()
    servers = work.servers()
    end.set()
    thread.join(_END_SECONDS)
    if work.failure is not None:
        raise work.failure
    if missing := sorted(kind.name for kind in needed if kind.required and kind not in recorder.synced):
        raise RecordingFailed(f"no complete list of {', '.join(missing)}; nothing was written")
    addresses = own_addresses(recorder, addresses_here())
    kernel = f"{platform.system()} {os.uname().release} {platform.machine()}"
    return recorder, RecordedNode(addresses, tuple(sorted(servers)), kernel)


def _pass_on(stop: threading.Event, waited_for: threading.Event) -> None:
    stop.wait()
    waited_for.set()


def own_addresses(recorder: Recorder, local: Sequence[str]) -> tuple[str, ...] | None:
    """The addresses of the interfaces, if this machine is the Node: it has one of the Node's addresses."""
    held = Held()
    Recording(Header(FORMAT, ""), tuple(recorder.entries)).play(held)
    named = {
        ip
        for node in held.objects[Kind.NODE].values()
        if isinstance(node, Node)
        for ip in api_addresses(node)
    }
    return None if named.isdisjoint(local) else tuple(local)


class _Work:
    """Runs the source that the settings name."""

    def __init__(
        self, config: ProxyConfig, recorder: Recorder, end: threading.Event, stop: threading.Event
    ) -> None:
        self._recorder = recorder
        self._end = end
        self._stop = stop
        self.failure: Exception | None = None
        self.servers: Callable[[], frozenset[tuple[str, int]]] = frozenset
        self._source: Source
        if config.manifests is not None:
            from kproxy.sources.manifests import ManifestSource

            self._source = ManifestSource(config.manifests, config.node_name, kinds=kinds_of_files(config))
            return
        from kproxy.sources.kubernetes import ClusterAccess, KubernetesSource

        access = ClusterAccess(config.kubeconfig, master=config.master or None)
        source = KubernetesSource(access, config.node_name)
        source.watch(wanted_kinds(config))
        self._source, self.servers = source, lambda: source.servers

    def run(self) -> None:
        """Feed the recorder until the end."""
        try:
            self._source.run(self._recorder, self._end)
        except Exception as error:  # noqa: BLE001
            self.failure = error
        finally:
            self._stop.set()
            self._recorder.complete.set()


def _reports(address: str) -> tuple[list[Entry], str]:
    """What the running agent answers, and the reason if none does."""
    found: list[Entry] = []
    try:
        found += _asked(address)
    except (AgentUnavailable, AgentRefused) as error:
        return found, str(error)
    return found, ""


def _asked(address: str) -> Iterator[AgentReport]:
    for path in REPORTS:
        answer = get(address, path, dict[str, Any], _AGENT_SECONDS)
        yield AgentReport(path, msgspec.Raw(msgspec.json.encode(answer)))
