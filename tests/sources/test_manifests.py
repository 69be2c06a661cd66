"""A directory of manifests that changes: what is followed, and what stays in force."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.sources.manifests import ManifestSource, ManifestSourceConfig
from kproxy.state.kinds import Kind
from tests.sources.objects import endpoint_slice, node, service, write
from tests.sources.recording import Running

CONFIG = ManifestSourceConfig(
    rescan_seconds=60, rescan_without_events_seconds=0.05, settle_seconds=0.01, hold_seconds=60
)


def port_of(sink: Any, key: str) -> int:
    ports = sink.service(key).spec.ports
    return int(ports[0].port)


@pytest.fixture
def source(tmp_path: Path) -> ManifestSource:
    return ManifestSource(tmp_path, "n1", CONFIG)


def test_changes_are_followed(tmp_path: Path, source: ManifestSource) -> None:
    write(tmp_path / "a.yaml", service("a"), node("n1"), node("n2"))
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)
        assert sink.keys(Kind.SERVICE) == {"default/a"}
        assert sink.keys(Kind.NODE) == {"n1"}
        write(tmp_path / "b.json", endpoint_slice("a", ["10.0.0.1"]))
        sink.wait(lambda: sink.keys(Kind.ENDPOINT_SLICE) == {"default/a-1"})
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(service("c")))
        sink.wait(lambda: "default/c" in sink.keys(Kind.SERVICE))
        (tmp_path / "a.yaml").unlink()
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/c"})
        (tmp_path / "c.yaml").rename(tmp_path / "c.txt")
        sink.wait(lambda: not sink.keys(Kind.SERVICE))
        assert not sink.problems


def test_a_renamed_file_withdraws_nothing(tmp_path: Path, source: ManifestSource) -> None:
    write(tmp_path / "a.yaml", service("a"))
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE)
        (tmp_path / "a.yaml").rename(tmp_path / "z.yaml")
        write(tmp_path / "mark.yaml", service("mark"))
        sink.wait(lambda: "default/mark" in sink.keys(Kind.SERVICE))
        (tmp_path / "z.yaml").unlink()
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/mark"})
        assert sink.deletes() == ["default/a"]


def test_what_a_file_held_stays_until_it_is_mended_or_deleted(tmp_path: Path, source: ManifestSource) -> None:
    path = tmp_path / "a.yaml"
    write(path, service("a", port=1), service("b"))
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE)
        path.write_text("kind: [\n")
        sink.wait(lambda: len(sink.problems) == 1)
        assert sink.problems[0][2].object == "file a.yaml"
        assert list(source.problems) == [sink.problems[0][2]]
        assert sink.keys(Kind.SERVICE) == {"default/a", "default/b"}
        write(path, service("a", port=2))
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a"})
        assert port_of(sink, "default/a") == 2
        assert not source.problems
        path.write_text("kind: [\n")
        sink.wait(lambda: len(sink.problems) == 2)
        path.unlink()
        sink.wait(lambda: not sink.keys(Kind.SERVICE))
        assert sink.deletes() == ["default/b", "default/a"]


def test_a_bad_object_keeps_its_old_version_while_its_neighbours_change(
    tmp_path: Path, source: ManifestSource
) -> None:
    path = tmp_path / "a.yaml"
    write(path, service("a", port=1), service("b", port=1), service("c"))
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE)
        bad = service("a")
        bad["spec"]["ports"] = "none"
        write(path, bad, service("b", port=2))
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a", "default/b"})
        assert port_of(sink, "default/a") == 1
        assert port_of(sink, "default/b") == 2
        assert sink.problems[0][:2] == (Kind.SERVICE, "default/a")


def test_when_the_winner_goes_the_other_file_takes_over(tmp_path: Path, source: ManifestSource) -> None:
    write(tmp_path / "a.yaml", service("x", port=1))
    write(tmp_path / "b.yaml", service("x", port=2))
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE)
        assert port_of(sink, "default/x") == 1
        assert len(sink.problems) == 1
        (tmp_path / "a.yaml").unlink()
        sink.wait(lambda: port_of(sink, "default/x") == 2)
        assert sink.deletes() == []


def test_a_directory_that_comes_later_is_an_outage_not_an_empty_list(tmp_path: Path) -> None:
    directory = tmp_path / "one" / "two"
    source = ManifestSource(directory, None, CONFIG)
    with Running(source) as sink:
        prepared = tmp_path / "prepared"
        prepared.mkdir()
        write(prepared / "a.yaml", service("a"))
        (tmp_path / "one").mkdir()
        prepared.rename(directory)
        sink.wait_listed(Kind.SERVICE)
        assert sink.history[0] == ("replace", Kind.NODE, "0")
        assert sink.keys(Kind.SERVICE) == {"default/a"}
        directory.rename(tmp_path / "away")
        (tmp_path / "new").mkdir()
        write(tmp_path / "new" / "b.yaml", service("b"), service("a"))
        (tmp_path / "new").rename(directory)
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a", "default/b"})
        assert sink.deletes() == []
        write(directory / "c.yaml", service("c"))
        sink.wait(lambda: "default/c" in sink.keys(Kind.SERVICE))


def test_a_mounted_config_map_is_swapped_as_a_whole(tmp_path: Path, source: ManifestSource) -> None:
    def publish(version: str, *names: str) -> None:
        """As kubelet's AtomicWriter does it."""
        data = tmp_path / f"..{version}"
        data.mkdir()
        for name in names:
            (data / f"{name}.yaml").write_text(yaml.safe_dump(service(name, port=len(version))))
        (tmp_path / "..data_tmp").symlink_to(data.name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        for name in names:
            if not (tmp_path / f"{name}.yaml").is_symlink():
                (tmp_path / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")

    publish("1", "a", "b")
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE)
        assert sink.keys(Kind.SERVICE) == {"default/a", "default/b"}
        publish("22", "b", "c")
        shutil.rmtree(tmp_path / "..1")
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/b", "default/c"})
        sink.wait(lambda: port_of(sink, "default/b") == 2)
        assert sink.deletes() == ["default/a"]
        assert not sink.problems


def test_a_directory_behind_a_symbolic_link_is_followed_when_the_link_moves(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "f.yaml", service(name))
    (tmp_path / "live").symlink_to("one")
    with Running(ManifestSource(tmp_path / "live", None, CONFIG)) as sink:
        sink.wait_listed(Kind.SERVICE)
        assert sink.keys(Kind.SERVICE) == {"default/one"}
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(tmp_path / "live")
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/two"})


def test_a_file_is_not_read_before_its_writer_closes_it(tmp_path: Path, source: ManifestSource) -> None:
    text = yaml.safe_dump_all([service("a"), service("b")])
    (tmp_path / "a.yaml").write_text(text)
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE)
        with (tmp_path / "a.yaml").open("w") as file:
            file.write(yaml.safe_dump(service("a")))
            file.flush()
            write(tmp_path / "mark.yaml", service("mark"))
            sink.wait(lambda: "default/mark" in sink.keys(Kind.SERVICE))
            assert sink.keys(Kind.SERVICE) == {"default/a", "default/b", "default/mark"}
            file.write("---\n" + yaml.safe_dump(service("c")))
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/a", "default/c", "default/mark"})
        assert not sink.problems


def test_without_inotify_the_rescan_finds_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("kproxy.sources.directory_watch.Inotify", unavailable)
    write(tmp_path / "a.yaml", service("a"))
    with Running(ManifestSource(tmp_path, None, CONFIG)) as sink:
        sink.wait_listed(Kind.SERVICE)
        write(tmp_path / "b.yaml", service("b"))
        (tmp_path / "a.yaml").unlink()
        sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/b"})


def test_an_unreadable_file_keeps_what_it_held(tmp_path: Path, source: ManifestSource) -> None:
    write(tmp_path / "a.yaml", service("a"))
    with Running(source) as sink:
        sink.wait_listed(Kind.SERVICE)
        os.truncate(tmp_path / "a.yaml", ManifestSourceConfig().max_file_bytes + 1)
        with (tmp_path / "a.yaml").open("a"):
            pass
        sink.wait(lambda: sink.problems)
        assert "larger than" in sink.problems[0][2].reason
        assert sink.keys(Kind.SERVICE) == {"default/a"}
