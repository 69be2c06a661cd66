"""What a DirectoryWatch is told is never lost, whoever reads it from inotify first."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.kernel.inotify import Inotify, InotifyEvent, Mask
from kproxy.sources import manifest_directory, manifests
from kproxy.sources.directory_watch import DirectoryWatch
from kproxy.sources.manifest_files import ManifestFile
from kproxy.sources.manifests import ManifestSource, ManifestSourceConfig
from kproxy.state.kinds import Kind
from tests.sources.objects import service, write
from tests.sources.recording import PATIENCE, RecordingSink, Running

NO_RESCAN = ManifestSourceConfig(rescan_seconds=3600, settle_seconds=0.01, hold_seconds=3600)


def rename_over(folder: Path) -> None:
    write(folder / "small.yaml", service("new"))


def write_in_place(folder: Path) -> None:
    with (folder / "small.yaml").open("w") as file:
        for line in yaml_of("new").splitlines(keepends=True):
            file.write(line)
            file.flush()


def delete_and_create(folder: Path) -> None:
    (folder / "small.yaml").unlink()
    (folder / "small.yaml").write_text(yaml_of("new"))


def swap_link(folder: Path) -> None:
    (folder / "..second").mkdir()
    (folder / "..second" / "small.yaml").write_text(yaml_of("new"))
    (folder / "..new").symlink_to("..second/small.yaml")
    (folder / "..new").rename(folder / "small.yaml")


def hard_link(folder: Path) -> None:
    (folder / "small.yaml").unlink()
    (folder.parent / "aside").write_text(yaml_of("new"))
    os.link(folder.parent / "aside", folder / "small.yaml")


def delete_and_rename(folder: Path) -> None:
    (folder / "small.yaml").unlink()
    write(folder / "other.yaml", service("new"))


CHANGES = [rename_over, write_in_place, delete_and_create, swap_link, hard_link, delete_and_rename]


def yaml_of(name: str) -> str:
    return yaml.safe_dump(service(name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "watched"
    made.mkdir()
    (made / "small.yaml").write_text(yaml_of("old"))
    return made


@pytest.fixture
def watch(folder: Path) -> Iterator[DirectoryWatch]:
    stop = threading.Event()
    with DirectoryWatch(folder, stop, settle=0.01, settle_max=0.5, hold=3600) as made:
        yield made
        stop.set()


def returns(watch: DirectoryWatch) -> bool:
    """Whether a wait that nothing else would end returns."""
    thread = threading.Thread(target=watch.wait, args=(3600,), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_read_while_files_are_read_ends_the_next_wait(
    folder: Path, watch: DirectoryWatch, change: Callable[[Path], None]
) -> None:
    change(folder)
    assert "small.yaml" not in watch.held()
    assert watch.held() == frozenset()
    assert returns(watch)


def test_a_directory_that_is_watched_already_stays_watched(folder: Path, watch: DirectoryWatch) -> None:
    for _ in range(2):
        watch.refresh()
        assert watch.has_events
        rename_over(folder)
        watch.held()
        assert returns(watch)


def test_a_directory_that_moved_away_is_not_watched_any_more(folder: Path, watch: DirectoryWatch) -> None:
    (folder.parent / "next").mkdir()
    folder.rename(folder.parent / "before")
    (folder.parent / "next").rename(folder)
    watch.held()
    assert returns(watch)
    rename_over(folder.parent / "before")
    watch.held()
    assert not watch._changed
    rename_over(folder)
    watch.held()
    assert returns(watch)


def test_a_hard_link_and_a_new_file_differ(folder: Path, watch: DirectoryWatch) -> None:
    """A new file will be written and is not read before; a link's content is there."""
    with (folder / "new.yaml").open("w"):
        assert watch.held() == {"new.yaml"}
    assert watch.held() == frozenset()
    os.link(folder / "small.yaml", folder / "link.yaml")
    assert watch.held() == frozenset()
    (folder / "symbolic.yaml").symlink_to("small.yaml")
    (folder / "directory.yaml").mkdir()
    assert watch.held() == frozenset()


def test_events_that_were_too_many_end_the_next_wait(
    watch: DirectoryWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [[InotifyEvent(-1, Mask.Q_OVERFLOW, "")]]
    monkeypatch.setattr(Inotify, "read", lambda _: events.pop() if events else [])
    watch.held()
    assert returns(watch)


def test_a_directory_that_is_replaced_while_files_are_read_ends_the_next_wait(
    folder: Path, watch: DirectoryWatch
) -> None:
    (folder.parent / "next").mkdir()
    folder.rename(folder.parent / "before")
    (folder.parent / "next").rename(folder)
    watch.held()
    assert returns(watch)
    rename_over(folder)
    watch.held()
    assert returns(watch)


def test_a_change_ends_one_wait_and_not_the_one_after(folder: Path, watch: DirectoryWatch) -> None:
    rename_over(folder)
    watch.held()
    assert returns(watch)
    waiting = threading.Thread(target=watch.wait, args=(3600,), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    (folder / "small.yaml").unlink()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_comes_while_another_file_is_read_is_obeyed_without_a_rescan(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    due = threading.Event()
    read = manifest_directory.read_file

    def slow(path: Path, *given: Any) -> ManifestFile:
        content = read(path, *given)
        if path.name == "big.yaml" and due.is_set():
            due.clear()
            change(folder)
        return content

    monkeypatch.setattr(manifests, "read_file", slow)
    write(folder / "big.yaml", service("big"))
    with Running(ManifestSource(folder, None, NO_RESCAN)) as sink:
        sink.wait_listed(Kind.SERVICE)
        due.set()
        write(folder / "big.yaml", service("big", port=81))
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/big", "default/new"})


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due = threading.Event()
    read = manifest_directory.read_file

    def raced(path: Path, *given: Any) -> ManifestFile:
        content = read(path, *given)
        if due.is_set():
            due.clear()
            rename_over(folder)
        return content

    monkeypatch.setattr(manifests, "read_file", raced)
    with Running(ManifestSource(folder, None, NO_RESCAN)) as sink:
        sink.wait_listed(Kind.SERVICE)
        due.set()
        write(folder / "small.yaml", service("between"))
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/new"})
        assert "default/between" not in sink.vanished


def test_a_link_whose_target_changes_unseen_while_it_is_read_is_read_again_soon(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inotify watches the directory, not the targets of its links."""
    target = folder.parent / "target.yaml"
    target.write_text(yaml_of("old"))
    (folder / "small.yaml").unlink()
    (folder / "small.yaml").symlink_to(target)
    due = threading.Event()
    read = manifest_directory.read_file

    def raced(path: Path, *given: Any) -> ManifestFile:
        content = read(path, *given)
        if due.is_set():
            due.clear()
            write(target, service("new"))
        return content

    monkeypatch.setattr(manifests, "read_file", raced)
    with Running(ManifestSource(folder, None, NO_RESCAN)) as sink:
        sink.wait_listed(Kind.SERVICE)
        due.set()
        write(target, service("between"))
        write(folder / "mark.yaml", service("mark"))
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/new", "default/mark"})


def test_a_file_that_is_written_for_long_is_read_when_it_is_closed_and_holds_up_no_other(
    folder: Path,
) -> None:
    def listed(sink: RecordingSink) -> set[str]:
        return sink.keys(Kind.SERVICE)

    with Running(ManifestSource(folder, None, NO_RESCAN)) as sink:

        def has(key: str) -> bool:
            return key in sink.keys(Kind.SERVICE)

        sink.wait_listed(Kind.SERVICE)
        with (folder / "long.yaml").open("w") as file:
            for number in range(5):
                file.write(f"---\n{yaml_of(f'part-{number}')}")
                file.flush()
                write(folder / f"other-{number}.yaml", service(f"other-{number}"))
                sink.wait(partial(has, f"default/other-{number}"))
                assert not any(key.startswith("default/part") for key in listed(sink))
        sink.wait(lambda: len([key for key in listed(sink) if key.startswith("default/part")]) == 5)
        assert not sink.problems
