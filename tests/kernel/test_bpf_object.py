"""The compiled programs belong to their source, are in the wheel, and stay small."""

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.kernel.bpf import maps, programs
from kproxy.kernel.bpf.elf import Program, read_object
from kproxy.kernel.bpf.map_set import NAMES
from kproxy.kernel.bpf.types import (
    FRONTEND_KEY_BYTES,
    FRONTEND_VALUE_BYTES,
    SLOT_BYTES,
    SLOT_WORDS,
    BpfError,
    BpfFailure,
)

ROOT = Path(__file__).parents[2]
_VERIFIED_MOST = 2000
_EXIT_WITH = struct.Struct("<BBhi")


@pytest.fixture
def descriptors() -> Iterator[dict[str, int]]:
    """Maps of connect.c, with room for two elements each."""
    found: dict[str, int] = {}
    try:
        for name, declaration in programs.connect_object().maps.items():
            found[name] = maps.create(name, declaration, 2)
    except BpfError as error:
        pytest.skip(f"no maps here: {error}")
    yield found
    for descriptor in found.values():
        os.close(descriptor)


def test_the_object_is_what_clang_makes_of_the_source(tmp_path: Path) -> None:
    if shutil.which("clang-19") is None:
        pytest.skip("clang-19 is not installed")
    subprocess.run([ROOT / "tools" / "bpf-object", tmp_path / "connect.o"], check=True)
    assert (tmp_path / "connect.o").read_bytes() == programs.OBJECT.read_bytes()


def test_the_wheel_takes_every_file_of_the_package() -> None:
    """The object is data of a package that goes into the wheel as a whole; nothing excludes it."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wheel = settings.partition("[tool.hatch.build.targets.wheel]")[2].partition("\n[")[0]
    assert 'packages = ["kproxy"]' in wheel
    assert "exclude" not in wheel
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert not {"*.o", "connect.o"} & set(ignored)
    assert programs.OBJECT.is_relative_to(ROOT / "kproxy")


def test_the_object_has_the_programs_and_the_maps_that_are_used() -> None:
    found = programs.connect_object()
    assert set(found.programs) == set(programs.HOOKS)
    assert set(found.maps) == {*NAMES, "settings", "asked"}
    for family, number in zip(FRONTEND_KEY_BYTES, "46", strict=True):
        frontends, slots = found.maps[f"frontends{number}"], found.maps[f"slots{number}"]
        assert (frontends.key_bytes, frontends.value_bytes) == (
            FRONTEND_KEY_BYTES[family],
            FRONTEND_VALUE_BYTES,
        )
        assert slots.value_bytes == SLOT_BYTES[family]
        assert SLOT_WORDS[family] == -(-slots.value_bytes // 8)


def test_the_object_says_the_licence_that_the_kernel_is_given() -> None:
    assert programs.LICENCE.encode() + b"\0" in programs.OBJECT.read_bytes()


@pytest.mark.parametrize("cut", [0, 3, 40, 64, 600, 3000])
def test_a_damaged_object_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="ELF object"):
        read_object(programs.OBJECT.read_bytes()[:cut])


def test_a_big_endian_object_is_refused() -> None:
    data = bytearray(programs.OBJECT.read_bytes())
    data[5] = 2
    with pytest.raises(ValueError, match="little-endian"):
        read_object(bytes(data))


def test_a_missing_object_is_a_failure_of_bpf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "OBJECT", tmp_path / "connect.o")
    with pytest.raises(BpfError, match=r"connect\.o: ") as caught:
        programs.connect_object()
    assert caught.value.kind is BpfFailure.REFUSED


@pytest.mark.root
@pytest.mark.parametrize("name", programs.HOOKS)
def test_the_kernel_takes_each_program_and_follows_few_instructions(
    name: str, descriptors: dict[str, int]
) -> None:
    program = programs.connect_object().programs[name]
    descriptor = programs.load(name, program, descriptors)
    try:
        info = programs.program_info(descriptor)
    finally:
        os.close(descriptor)
    assert 0 < len(program.instructions) // 8 <= info.verified < _VERIFIED_MOST
    assert info.maps == {maps.MapInfo(descriptors[used]).number for _, used in program.names}


@pytest.mark.root
def test_a_refused_program_comes_with_the_last_words_of_the_verifier(descriptors: dict[str, int]) -> None:
    """It returns a register that it never wrote."""
    without_result = Program(_EXIT_WITH.pack(0x95, 0, 0, 0), ())
    with pytest.raises(BpfError) as caught:
        programs.load("connect4", without_result, descriptors)
    assert caught.value.kind is BpfFailure.REFUSED
    assert "R0 !read_ok" in caught.value.message
    assert "program connect4" in caught.value.message
