"""Maps of the kernel: elements alone and in batches, memory that programs read, counters of processors."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.kernel.bpf import maps, syscall
from kproxy.kernel.bpf.elf import MapDeclaration
from kproxy.kernel.bpf.programs import connect_object
from kproxy.kernel.bpf.types import BpfError, BpfFailure

pytestmark = pytest.mark.root


@contextmanager
def made(name: str, entries: int) -> Iterator[int]:
    """A map as connect.c declares it."""
    try:
        descriptor = maps.create(name, connect_object().maps[name], entries)
    except BpfError as error:
        pytest.skip(f"no maps here: {error}")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def element(number: int) -> tuple[bytes, bytes]:
    return struct.pack("!IHH", 0x0A600000 + number, 80, 0), struct.pack("=III", number, 1, number)


def test_elements_are_written_replaced_and_deleted() -> None:
    with made("frontends4", 10) as descriptor:
        hashed = maps.HashMap("frontends4", descriptor)
        assert hashed.read() == {}
        hashed.write(dict(map(element, range(10))))
        (key, _), (_, other) = element(3), element(7)
        hashed.write({key: other})
        hashed.delete([element(4)[0], element(4)[0], element(99)[0]])
        expected = dict(map(element, range(10)))
        expected[key] = other
        del expected[element(4)[0]]
        assert hashed.read() == expected


def test_thousands_are_filled_and_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[syscall.Command] = []

    def counted(command: syscall.Command, attributes: syscall.Buffer, size: int) -> int:
        calls.append(command)
        return syscall.call(command, attributes, size)

    monkeypatch.setattr(maps, "call", counted)
    with made("frontends4", 20_000) as descriptor:
        hashed = maps.HashMap("frontends4", descriptor)
        elements = dict(map(element, range(20_000)))
        hashed.fill(elements)
        assert hashed.read() == elements
    assert len(calls) < 20


def test_elements_with_equal_hashes_need_more_room_than_was_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one, every bucket of two makes the kernel answer ENOSPC."""
    monkeypatch.setattr(maps, "_MOST_AT_ONCE", 1)
    monkeypatch.setattr(maps, "_LEAST_AT_ONCE", 1)
    with made("frontends4", 200) as descriptor:
        hashed = maps.HashMap("frontends4", descriptor)
        elements = dict(map(element, range(200)))
        hashed.write(elements)
        assert hashed.read() == elements


@pytest.mark.parametrize("method", ["write", "fill"])
def test_a_full_map_is_named_with_its_room(method: str) -> None:
    with made("frontends4", 4) as descriptor:
        hashed = maps.HashMap("frontends4", descriptor)
        with pytest.raises(BpfError) as caught:
            getattr(hashed, method)(dict(map(element, range(5))))
        assert caught.value.kind is BpfFailure.FULL
        assert caught.value.message == "map frontends4 is full: 4 elements"
        assert hashed.read() == dict(map(element, range(4)))
        key, _ = element(2)
        hashed.write({key: element(3)[1]})  # replacing needs no room


def test_an_element_of_another_size_is_refused_before_the_kernel_reads_it() -> None:
    with made("frontends4", 4) as descriptor:
        hashed = maps.HashMap("frontends4", descriptor)
        with pytest.raises(ValueError, match="7 bytes for an element of 8"):
            hashed.write({b"1234567": bytes(12)})
        assert hashed.read() == {}


@pytest.mark.parametrize(("name", "bytes_apart"), [("slots4", 8), ("slots6", 24)])
def test_memory_of_slots_is_the_map(name: str, bytes_apart: int) -> None:
    with made(name, 700) as descriptor:
        slots = maps.Slots(descriptor)
        assert len(slots.words) == 700 * bytes_apart // 8
        assert not any(slots.words)
        slots.words[699 * bytes_apart // 8] = 0x0102030405060708
        found = maps.read_element(name, descriptor, 699, bytes_apart)
        assert struct.unpack_from("=Q", found) == (0x0102030405060708,)
        part = slots.words[1:2]
        slots.close()
        part.release()
        with pytest.raises(ValueError, match="released"):
            slots.words[0] = 1


def test_counters_are_summed_over_processors() -> None:
    with made("connections", 5000) as descriptor:
        processors = maps.possible_processors()
        for number, each in ((0, 2), (4999, 5)):
            counted = struct.pack(f"={processors}Q", *range(each, each + processors))
            maps.write_element("connections", descriptor, number, counted)
        counters = maps.Counters("connections", descriptor)
        sums = counters.read(10_000)
        assert len(sums) == 5000
        assert sums[0] == sum(range(2, 2 + processors))
        assert sums[4999] == sum(range(5, 5 + processors))
        assert not any(sums[1:4999])
        assert counters.read(1) == sums[:1]
        assert counters.read(0) == []


def test_an_old_kernel_that_reads_no_counters_in_batches_is_asked_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusing(command: syscall.Command, attributes: syscall.Buffer, size: int) -> int:
        refused = command is syscall.Command.MAP_LOOKUP_BATCH
        return -syscall.NOT_SUPPORTED if refused else syscall.call(command, attributes, size)

    with made("connections", 100) as descriptor:
        counters = maps.Counters("connections", descriptor)
        counters.start_at([0, 7, 9])
        monkeypatch.setattr(maps, "call", refusing)
        assert counters.read(4) == [0, 7, 9, 0]


@pytest.mark.parametrize(("text", "number"), [("0\n", 1), ("0-3\n", 4), ("0-3,8,10-11\n", 7)])
def test_possible_processors_are_counted(text: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "possible").write_text(text, encoding="ascii")
    assert maps.possible_processors(tmp_path / "possible") == number


def test_without_a_list_of_processors_the_reason_is_given(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="does not list the processors") as caught:
        maps.possible_processors(tmp_path / "possible")
    assert caught.value.kind is BpfFailure.MISSING


def test_storage_of_sockets_that_the_kernel_lacks_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without it answers EINVAL; a kind that no kernel has gives the same answer."""
    monkeypatch.setattr(maps, "SK_STORAGE", 250)
    with pytest.raises(BpfError, match="no storage for sockets") as caught:
        maps.create("asked", MapDeclaration(250, 4, 20, 0, 1), 0)
    assert caught.value.kind is BpfFailure.MISSING


def test_a_map_is_compared_with_its_declaration_but_for_its_room() -> None:
    declared = connect_object().maps
    with made("frontends4", 77) as descriptor:
        info = maps.MapInfo(descriptor)
        assert info.entries == 77
        assert info.is_as(declared["frontends4"])
        assert not info.is_as(declared["frontends6"])
        assert not info.is_as(declared["slots4"])
