"""What a directory of manifests holds: which files and objects are read, and how bad ones are told."""

import json
from pathlib import Path

import pytest
import yaml

from kproxy.sources.manifests import ManifestSourceConfig, load_manifests
from kproxy.state.kinds import Kind
from kproxy.state.wire import EndpointSlice, Service
from tests.sources.objects import endpoint_slice, node, service, write


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
    assert found.metadata.creation_timestamp == stamp  # type: ignore[attr-defined]


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
    assert third.spec.cluster_ip == "10.96.0.1"  # type: ignore[attr-defined]


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
