"""Splitting a watch into events, however the network cuts it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.errors import StatusError
from kproxy.sources.listing import EventReader
from kproxy.sources.wire_events import GarbledError, read_event
from kproxy.state.kinds import Kind
from tests.sources.objects import service


class Pieces:
    """A stream that gives its bytes in given portions."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        self._left = data
        self._cuts = cuts

    def read(self) -> bytes:
        size = self._cuts.pop() if self._cuts else len(self._left)
        data, self._left = self._left[: max(size, 1)], self._left[max(size, 1) :]
        return data


def line(type_: str, name: str, version: int) -> bytes:
    obj = service(name, resourceVersion=str(version), labels={"motto": "é" * 20})
    return json.dumps({"type": type_, "object": obj}, ensure_ascii=False).encode() + b"\n"


def read(data: bytes, cuts: list[int]) -> list[tuple[str, str, str]]:
    stream: Any = Pieces(data, cuts)
    reader = EventReader(stream, Kind.SERVICE, KubernetesSourceConfig())
    return [(event.type, event.key, event.version) for event in reader]


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(0, 8))
def test_events_come_out_whole_however_they_are_cut(cuts: list[int], count: int) -> None:
    data = b"".join(line("ADDED", f"s{n}", n) + b"\n" * (n % 2) for n in range(count))
    assert read(data, cuts) == [("ADDED", f"default/s{n}", str(n)) for n in range(count)]


@given(st.integers(1, 300))
def test_half_an_event_at_the_end_is_never_taken_for_one(cut: int) -> None:
    data = line("ADDED", "a", 1)
    with pytest.raises(GarbledError):
        read(data + line("MODIFIED", "a", 2)[:cut], [])


def test_the_key_of_a_node_has_no_namespace() -> None:
    event = read_event(
        b'{"type":"DELETED","object":{"metadata":{"name":"n1","resourceVersion":"4"}}}', Kind.NODE
    )
    assert (event.key, event.version, event.ends_list) == ("n1", "4", False)


def test_only_the_annotated_bookmark_ends_a_list() -> None:
    annotations = b'{"k8s.io/initial-events-end":%s}'
    head = b'{"type":"%s","object":{"metadata":{"resourceVersion":"4","annotations":' + annotations + b"}}}"
    assert read_event(head % (b"BOOKMARK", b'"true"'), Kind.SERVICE).ends_list
    assert not read_event(head % (b"BOOKMARK", b'"false"'), Kind.SERVICE).ends_list
    assert not read_event(head % (b"BOOKMARK", b"5"), Kind.SERVICE).ends_list
    assert not read_event(head % (b"ADDED", b'"true"'), Kind.SERVICE).ends_list


def test_an_error_event_is_raised_with_its_code_on_one_line() -> None:
    with pytest.raises(StatusError) as caught:
        read_event(
            b'{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"a\\nb"}}', Kind.SERVICE
        )
    assert caught.value.code == 410
    assert "\n" not in str(caught.value)
