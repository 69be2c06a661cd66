"""A directory of manifests: what is served, what is reported, and what stays in force."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.sources.manifests import ManifestSource, ManifestSourceConfig, load_manifests
from kproxy.state.decode import Kind
from kproxy.state.wire import EndpointSlice, Service
from tests.sources.objects import endpoint_slice, node, service
from tests.sources.recording import Running

CONFIG = ManifestSourceConfig(
    rescan_seconds=60, rescan_without_events_seconds=0.05, settle_seconds=0.01, hold_seconds=60
)


def write(path: Path, *objects: object) -> None:
    """Write a file as editors and kubelet do: complete, then moved into place."""
    new = path.with_name(f".{path.name}.new")
    if path.suffix == ".json":
        new.write_text("\n".join(map(json.dumps, objects)))
    else:
        new.write_text(yaml.safe_dump_all(objects))
    new.replace(path)


def port_of(sink: Any, key: str) -> int:
    ports = sink.service(key).spec.ports
    return int(ports[0].port)


@pytest.fixture
def source(tmp_path: Path) -> ManifestSource:
    return ManifestSource(tmp_path, "n1", CONFIG)


def test_all_forms_of_a_file_are_read(tmp_path: Path) -> None:
    write(tmp_path / "several.yaml", service("a"), {"apiVersion": "v1", "kind": "Secret"}, service("b"))
    write(tmp_path / "list.yml", {"apiVersion": "v1", "kind": "List", "items": [service("c"), node("n1")]})
    bare = {key: value for key, value in service("d").items() if key in ("metadata", "spec")}
    write(tmp_path / "typed.json", {"apiVersion": "v1", "kind": "ServiceList", "items": [bare]})
    write(tmp_path / "lines.json", service("e"), endpoint_slice("e", ["10.0.0.1"]))
    pieces = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList"}
    write(tmp_path / "pieces.yaml", {**pieces, "items": [endpoint_slice("a", ["10.0.0.2"])]})
    (tmp_path / "empty.yaml").write_text("# nothing\n---\n---\n")
    (tmp_path / "empty.json").write_text("\n")
    (tmp_path / "null.yaml").write_text("apiVersion: v1\nkind: List\nitems:\n")
    (tmp_path / "notes.txt").write_text("kind: [")
    (tmp_path / ".hidden.yaml").write_text("kind: [")
    (tmp_path / "folder.yaml").mkdir()
    loaded = load_manifests(tmp_path)
    assert loaded.problems == ()
    assert [obj.key for obj in loaded.objects[Kind.SERVICE]] == [f"default/{name}" for name in "abcde"]
    assert [obj.key for obj in loaded.objects[Kind.ENDPOINT_SLICE]] == ["default/a-1", "default/e-1"]
    assert [obj.key for obj in loaded.objects[Kind.NODE]] == ["n1"]


def test_a_slice_port_without_a_name_gets_the_empty_one(tmp_path: Path) -> None:
    unnamed = {**endpoint_slice("a", ["10.0.0.1"]), "ports": [{"port": 8080}, {"name": "b", "port": 8081}]}
    write(tmp_path / "a.yaml", unnamed)
    (loaded,) = load_manifests(tmp_path).objects[Kind.ENDPOINT_SLICE]
    assert isinstance(loaded, EndpointSlice)
    assert [(port.name, port.port) for port in loaded.ports or ()] == [("", 8080), ("b", 8081)]


def test_a_kind_of_the_same_name_in_another_group_is_not_ours(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {**service("a"), "apiVersion": "serving.knative.dev/v1"})
    loaded = load_manifests(tmp_path)
    assert not loaded.objects[Kind.SERVICE]
    assert not loaded.problems


def test_timestamps_stay_text(tmp_path: Path) -> None:
    stamp = "2024-05-01T10:00:00Z"
    text = yaml.safe_dump(service("a")).replace("  name: a", f"  name: a\n  creationTimestamp: {stamp}")
    (tmp_path / "a.yaml").write_text(text)
    loaded = load_manifests(tmp_path)
    assert loaded.problems == ()
    (found,) = loaded.objects[Kind.SERVICE]
    assert found.metadata.creation_timestamp == stamp  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("a.yaml", b"kind: Service\nmetadata: [\n", 3, "while parsing a flow node"),
        ("a.yaml", b"a: 1\nb: \xff\n", 2, "not UTF-8: byte 0xff"),
        ("a.yaml", b"a: 1\nb: \0\n", 1, "control characters are not allowed"),
        ("a.yaml", b"---\n- just\n- a list\n", 2, "a mapping with apiVersion and kind is expected"),
        ("a.yaml", b"\n\nsome text\n", 3, "a mapping with apiVersion and kind is expected"),
        ("a.yaml", b"apiVersion: v1\nmetadata: {name: a}\n", 1, "kind is missing"),
        ("a.yaml", b"kind: Service\nmetadata: {name: a}\n", 1, "apiVersion is missing"),
        ("a.yaml", b"apiVersion: v1\nkind: Service\nkind: Service\n", 3, "the key 'kind' is there twice"),
        ("a.yaml", b"apiVersion: v1\nkind: Service\nmetadata: {on: x}", 3, "the key 'on' is not text"),
        ("a.yaml", b"apiVersion: v1\nkind: Service\nspec: *x\n", 3, "the alias *x has no anchor"),
        ("a.yaml", b"apiVersion: v1\nkind: Service\nspec: !!binary aGE=\n", 3, "is not supported"),
        ("a.yaml", b"apiVersion: v1\nkind: Service\nspec: {a: .nan}\n", 3, "not a number that JSON has"),
        ("a.yaml", b"a: " + b"[" * 1000, 1, "nested deeper than"),
        ("a.yaml", b"apiVersion: v1\nkind: List\nitems: {}\n", 1, "items of a list is not a list"),
        ("a.json", b'{"kind": "Service",\n "metadata": }', 2, "not JSON"),
        ("a.json", b'[\n{"kind": "Service"}]', 1, "a mapping with apiVersion and kind is expected"),
        ("a.json", b'{"apiVersion": "v1", "kind": "List",\n"items": 5}', 1, "items of a list is not a list"),
        ("a.json", b"[" * 100_000, 1, "not JSON"),
    ],
)
def test_a_broken_file_is_named_with_line_and_reason(
    tmp_path: Path, name: str, content: bytes, line: int, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    write(tmp_path / "good.yaml", service("good"))
    loaded = load_manifests(tmp_path)
    (problem,) = loaded.problems
    assert problem.object == f"file {name}"
    assert problem.field == f"line {line}"
    assert reason in problem.reason
    assert [obj.key for obj in loaded.objects[Kind.SERVICE]] == ["default/good"]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_bad_object_costs_only_itself_and_is_named_with_its_line(tmp_path: Path, suffix: str) -> None:
    bad = service("bad")
    bad["spec"]["ports"][0]["port"] = "eighty"
    objects = {"apiVersion": "v1", "kind": "List", "items": [service("a"), bad, service("z")]}
    text = json.dumps(objects, indent=1) if suffix == "json" else yaml.safe_dump(objects)
    line = next(n for n, each in enumerate(text.splitlines(), 1) if '"eighty"' in each or "eighty" in each)
    (tmp_path / f"f.{suffix}").write_text(text)
    loaded = load_manifests(tmp_path)
    assert [obj.key for obj in loaded.objects[Kind.SERVICE]] == ["default/a", "default/z"]
    (problem,) = loaded.problems
    assert problem.object == "Service default/bad"
    assert problem.field == "spec.ports[0].port"
    assert problem.value == '"eighty"'
    start = int(problem.reason.rsplit("line ", 1)[1].rstrip(")"))
    assert line - 20 < start < line


def test_a_fault_inside_one_item_of_a_list_leaves_its_neighbours(tmp_path: Path) -> None:
    items = [service(name) for name in "abc"]
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items})
    (tmp_path / "f.yaml").write_text(text.replace("    name: b\n", "    name: b\n    name: b2\n"))
    loaded = load_manifests(tmp_path)
    assert [obj.key for obj in loaded.objects[Kind.SERVICE]] == ["default/a", "default/c"]
    assert ["the key 'name' is there twice" in each.reason for each in loaded.problems] == [True]


def test_an_alias_bomb_is_refused_and_honest_aliases_are_not(tmp_path: Path) -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (tmp_path / "bomb.yaml").write_text("\n".join(bomb))
    (tmp_path / "good.yaml").write_text(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- &a {apiVersion: v1, kind: Service, metadata: {name: a}, spec: &spec {clusterIP: 10.96.0.1}}\n"
        "- {<<: *a, metadata: {name: b}}\n"
        "- {apiVersion: v1, kind: Service, metadata: {name: c}, spec: {<<: *spec, type: NodePort}}\n"
    )
    loaded = load_manifests(tmp_path)
    (problem,) = loaded.problems
    assert problem.object == "file bomb.yaml"
    assert "aliases expand" in problem.reason
    assert [obj.key for obj in loaded.objects[Kind.SERVICE]] == ["default/a", "default/b", "default/c"]
    third = loaded.objects[Kind.SERVICE][2]
    assert third.spec.cluster_ip == "10.96.0.1"  # type: ignore[union-attr]


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", service("a"))
    loaded = load_manifests(tmp_path, ManifestSourceConfig(max_file_bytes=100))
    assert loaded.problems[0].reason == "is larger than 100 bytes"


def test_the_first_file_by_name_wins_and_the_other_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", service("x", port=1), service("x", port=3))
    write(tmp_path / "b.yaml", service("x", port=2))
    loaded = load_manifests(tmp_path)
    (found,) = loaded.objects[Kind.SERVICE]
    assert isinstance(found, Service)
    assert found.spec is not None
    assert found.spec.ports is not None
    assert found.spec.ports[0].port == 1
    assert [each.value for each in loaded.problems] == ['"x"', '"b.yaml"']
    assert "a.yaml" in loaded.problems[1].reason


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
