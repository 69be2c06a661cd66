"""A recording as a source of objects: the history is played at once, and then nothing changes any more."""

from collections.abc import Collection, Sequence
from pathlib import Path
from threading import Event

from kproxy.sources.base import Sink, SourceError
from kproxy.sources.manifests import LoadedManifests
from kproxy.sources.recording import RecordedNode, Recording, RecordingError, read_recording
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import WireObject


class ReplaySource:
    """Feeds a Sink from a recording (implements Source). `until`: the number of the last event; 0: all."""

    def __init__(self, path: Path, until: int = 0) -> None:
        """Read the recording. Raises SourceError if that fails."""
        try:
            self._recording = open_recording(path, until)
        except (RecordingError, OSError) as error:
            raise SourceError(str(error)) from error
        self._until = until
        self.played = False

    @property
    def node(self) -> RecordedNode | None:
        """The recorded facts of the node."""
        return self._recording.node

    def run(self, sink: Sink, stop: Event) -> None:
        """Play the events and wait for `stop`."""
        self._recording.play(sink, self._until)
        self.played = True
        stop.wait()


def open_recording(path: Path, until: int = 0) -> Recording:
    """Read a recording that has an event of this number. Raises RecordingError, OSError."""
    recording = read_recording(path)
    if until > recording.events:
        raise RecordingError(path, f"--at {until}: the last event is {recording.events}")
    return recording


def load_replay(path: Path, until: int = 0) -> LoadedManifests:
    """The objects in force after this event. Raises RecordingError, OSError."""
    recording = open_recording(path, until)
    held = Held()
    recording.play(held, until)
    node = recording.node
    return LoadedManifests(
        {kind: tuple(obj for _, obj in sorted(found.items())) for kind, found in held.objects.items()},
        tuple(dict.fromkeys(held.problems())),
        frozenset(node.api_servers) if node is not None else frozenset(),
        node.addresses if node is not None else None,
    )


class Held:
    """The objects in force after the events so far (implements Sink)."""

    def __init__(self) -> None:
        self.objects: dict[Kind, dict[str, WireObject]] = {kind: {} for kind in KINDS}
        self._rejected: dict[tuple[Kind, str | None], Problem] = {}

    def problems(self) -> Sequence[Problem]:
        """All defects of objects."""
        partial = [
            each
            for kind, found in self.objects.items()
            for obj in found.values()
            for each in kind.problems_of(obj)
        ]
        return [*self._rejected.values(), *partial]

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:
        """See Sink.replace."""
        before = self.objects[kind]
        kept = {key: before[key] for key in unreadable if key in before}
        self.objects[kind] = kept | {obj.key: obj for obj in objects}
        stays = {*unreadable, None}
        self._rejected = {
            at: why for at, why in self._rejected.items() if at[0] is not kind or at[1] in stays
        }

    def upsert(self, kind: Kind, obj: WireObject) -> None:
        """See Sink.upsert."""
        self.objects[kind][obj.key] = obj
        self._rejected.pop((kind, obj.key), None)

    def delete(self, kind: Kind, key: str) -> None:
        """See Sink.delete."""
        self.objects[kind].pop(key, None)
        self._rejected.pop((kind, key), None)

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:
        """See Sink.reject."""
        self._rejected[kind, key] = problem
