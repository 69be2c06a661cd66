"""What is wrong with manifests is in the status for as long as it is wrong, and no longer."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.sources.base import ProblemSink
from kproxy.sources.manifests import ManifestSource, ManifestSourceConfig
from kproxy.state.kinds import Kind
from kproxy.state.problems import Problem
from kproxy.state.store import ObjectStore
from tests.sources.objects import service, write
from tests.sources.recording import PATIENCE

CONFIG = ManifestSourceConfig(
    rescan_seconds=60, rescan_without_events_seconds=0.05, settle_seconds=0.01, hold_seconds=60
)
BROKEN = "kind: [\n"


def bad(name: str) -> dict[str, Any]:
    found = service(name)
    found["spec"]["ports"] = "none"
    return found


def cidr(name: str, *ranges: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": list(ranges)},
    }


class WatchedInbox(ObjectStore):
    """Lets a test wait for what it holds."""

    def __init__(self) -> None:
        super().__init__([Kind.SERVICE])
        self.condition = threading.Condition()

    def set_problems(self, problems: Sequence[Problem]) -> None:
        super().set_problems(problems)
        with self.condition:
            self.condition.notify_all()

    def rejects(self, *objects: str) -> None:
        """Wait until exactly these objects are rejected."""
        deadline = time.monotonic() + PATIENCE
        with self.condition:
            while (found := [each.object for each in self.rejected()]) != sorted(objects):
                left = deadline - time.monotonic()
                assert left > 0, found
                self.condition.wait(left)


@contextmanager
def running(directory: Path) -> Iterator[WatchedInbox]:
    store, stop = WatchedInbox(), threading.Event()
    source = ManifestSource(directory, "n1", CONFIG)
    thread = threading.Thread(target=source.run, args=(store, stop))
    thread.start()
    try:
        yield store
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "manifests"
    made.mkdir()
    return made


def test_the_inbox_keeps_problems() -> None:
    assert isinstance(ObjectStore([]), ProblemSink)


def mend_syntax(folder: Path) -> None:
    write(folder / "a.yaml", service("x"))


def delete_file(folder: Path) -> None:
    (folder / "a.yaml").unlink()


def rename_out(folder: Path) -> None:
    (folder / "a.yaml").rename(folder / "a.yaml.bak")


def empty_file(folder: Path) -> None:
    write(folder / "a.yaml")


def replace_directory(folder: Path) -> None:
    (folder.parent / "next").mkdir()
    write(folder.parent / "next" / "b.yaml", service("x"))
    folder.rename(folder.parent / "before")
    (folder.parent / "next").rename(folder)


def empty_directory(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    write(folder / "b.yaml", service("x"))


def change_kind(folder: Path) -> None:
    write(folder / "a.yaml", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})


MENDS = [
    mend_syntax,
    delete_file,
    rename_out,
    empty_file,
    replace_directory,
    empty_directory,
    change_kind,
]


@pytest.mark.parametrize("mend", MENDS)
@pytest.mark.parametrize("defect", ["syntax", "object", "twice", "kind"])
def test_what_is_mended_or_gone_is_no_longer_rejected(
    folder: Path, defect: str, mend: Callable[[Path], None]
) -> None:
    told = "Service default/x"
    match defect:
        case "syntax":
            (folder / "a.yaml").write_text(BROKEN)
            told = "file a.yaml"
        case "object":
            write(folder / "a.yaml", bad("x"), service("y"))
        case "twice":
            write(folder / "a.yaml", service("x"), service("x"))
        case _:
            write(folder / "a.yaml", {"metadata": {"name": "x"}})
            told = "file a.yaml"
    with running(folder) as store:
        store.rejects(told)
        mend(folder)
        store.rejects()


def test_a_broken_file_is_reported_from_the_first_look_on_and_again_when_it_breaks_again(
    folder: Path,
) -> None:
    (folder / "a.yaml").write_text(BROKEN)
    write(folder / "b.yaml", service("b"))
    with running(folder) as store:
        store.rejects("file a.yaml")
        write(folder / "a.yaml", service("a"))
        store.rejects()
        (folder / "a.yaml").write_text(BROKEN)
        store.rejects("file a.yaml")


def test_a_file_that_is_renamed_is_rejected_under_its_new_name(folder: Path) -> None:
    (folder / "a.yaml").write_text(BROKEN)
    with running(folder) as store:
        store.rejects("file a.yaml")
        (folder / "a.yaml").rename(folder / "z.yaml")
        store.rejects("file z.yaml")


def test_documents_are_mended_and_removed_one_by_one(folder: Path) -> None:
    write(folder / "a.yaml", bad("x"), bad("y"), bad("z"), service("w"))
    with running(folder) as store:
        store.rejects("Service default/x", "Service default/y", "Service default/z")
        write(folder / "a.yaml", service("x"), bad("y"), bad("z"), service("w"))
        store.rejects("Service default/y", "Service default/z")
        write(folder / "a.yaml", service("x"), bad("z"), service("w"))
        store.rejects("Service default/z")
        write(folder / "a.yaml", service("x"), service("w"))
        store.rejects()


def test_an_object_that_two_files_break_is_rejected_until_both_are_mended(folder: Path) -> None:
    write(folder / "a.yaml", bad("x"))
    write(folder / "b.yaml", bad("x"))
    with running(folder) as store:
        store.rejects("Service default/x", "Service default/x")
        (folder / "b.yaml").unlink()
        store.rejects("Service default/x")
        write(folder / "a.yaml", service("x"))
        store.rejects()


def test_a_valid_object_hides_no_broken_one_in_another_file(folder: Path) -> None:
    write(folder / "a.yaml", service("x"))
    write(folder / "b.yaml", bad("x"))
    with running(folder) as store:
        store.rejects("Service default/x")
        write(folder / "a.yaml", service("x", port=81))
        write(folder / "c.yaml", bad("mark"))
        store.rejects("Service default/mark", "Service default/x")
        write(folder / "b.yaml", service("y"))
        store.rejects("Service default/mark")


def test_an_object_in_two_files_is_reported_until_one_lets_it_go(folder: Path) -> None:
    write(folder / "a.yaml", service("x"))
    write(folder / "b.yaml", service("x"), service("y"))
    with running(folder) as store:
        store.rejects("Service default/x")
        write(folder / "b.yaml", service("y"))
        store.rejects()
        write(folder / "b.yaml", service("x"))
        store.rejects("Service default/x")
        (folder / "a.yaml").unlink()
        store.rejects()


def test_an_object_that_moves_between_files_is_rejected_where_it_is(folder: Path) -> None:
    write(folder / "a.yaml", bad("x"))
    write(folder / "b.yaml", service("y"))
    with running(folder) as store:
        store.rejects("Service default/x")
        write(folder / "b.yaml", service("y"), bad("x"))
        store.rejects("Service default/x", "Service default/x")
        write(folder / "a.yaml", service("z"))
        store.rejects("Service default/x")
        write(folder / "b.yaml", service("y"), service("x"))
        store.rejects()


def test_a_range_that_is_none_is_rejected_until_it_is_one(folder: Path) -> None:
    write(folder / "a.yaml", cidr("r", "10.96.0.0/16", "fd00::"))
    with running(folder) as store:
        store.rejects("ServiceCIDR r")
        write(folder / "b.yaml", bad("x"))
        store.rejects("Service default/x", "ServiceCIDR r")
        write(folder / "a.yaml", cidr("r", "10.96.0.0/16"))
        store.rejects("Service default/x")


def test_a_file_that_could_not_be_read_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing about the file changes when a disk or a limit of descriptors recovers."""
    path = folder / "a.yaml"
    write(path, service("x"))
    failing = threading.Event()
    failing.set()
    opened = Path.open

    def flaky(self: Path, *arguments: Any, **named: Any) -> Any:
        if failing.is_set() and self.name == "a.yaml":
            raise OSError(5, "Input/output error")
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", flaky)
    with running(folder) as store:
        store.rejects("file a.yaml")
        failing.clear()
        write(folder / "b.yaml", service("y"))
        store.rejects()
        assert store.services == 2


def test_recovery_is_logged_once(folder: Path) -> None:
    write(folder / "a.yaml", bad("x"), bad("y"))
    with capture_logs() as logs, running(folder) as store:
        store.rejects("Service default/x", "Service default/y")
        write(folder / "a.yaml", service("x"), bad("y"))
        store.rejects("Service default/y")
        write(folder / "a.yaml", service("x"), service("y"))
        store.rejects()
    told = [(line["event"], line.get("object")) for line in logs]
    assert told.count(("object_valid_again", "Service default/x")) == 1
    assert told.count(("manifest_valid_again", None)) == 1
