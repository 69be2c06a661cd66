"""The socket table in the kernel: which changes by others it finds and puts right, and what is in its way."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.bpf import links, programs, syscall
from kproxy.kernel.bpf.elf import Program
from kproxy.kernel.bpf.links import hook_programs
from kproxy.kernel.bpf.maps import write_element
from kproxy.kernel.bpf.pins import open_pin, unpin_all
from kproxy.kernel.bpf.socket_table import KernelSocketTable, remove_published
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Change
from tests.support.bpf import (
    LARGER,
    SERVICE,
    SMALL,
    answer_from,
    endpoint,
    key,
    reopened,
    serve,
    value,
)

pytestmark = pytest.mark.root
V4 = Family.IPV4
_ATTACH, _DETACH = 8, 9  # enum bpf_cmd
_REMOUNT, _READ_ONLY = 0x20, 0x1  # MS_REMOUNT, MS_RDONLY
_ALLOW_MULTI = 2


@pytest.mark.parametrize("name", programs.HOOKS)
def test_a_link_that_was_detached_is_found_and_made_again(
    name: str, table: KernelSocketTable, bpffs: Path, cgroup: Path
) -> None:
    _detach_link(bpffs / "kproxy" / f"link-{name}")
    (found,) = table.problems()
    assert (found.object, found.change) == (f"link {name}", Change.MISSING)
    assert "detached" in found.detail
    table.publish()
    assert table.problems() == []
    assert len(hook_programs(cgroup, programs.HOOKS[name]).programs) == 1


def test_pins_that_were_removed_are_found_and_made_again(
    table: KernelSocketTable, bpffs: Path, cgroup: Path
) -> None:
    directory = bpffs / "kproxy"
    with endpoint(V4) as port:
        serve(table, V4, port)
        unpin_all(directory / "layout-1")
        (directory / "link-connect4").unlink()
        changes = {each.change for each in table.problems()}
        named = {each.object.rpartition("/")[2] for each in table.problems()}
        assert changes == {Change.MISSING}
        assert {"link-connect4", "asked", "settings", "slots4", "frontends6", "connections"} <= named
        assert answer_from(SERVICE[V4]) == port
        table.publish()
        assert table.problems() == []
        table.close()
        following = reopened(cgroup, bpffs)
        assert following.frontends(V4) == {key(SERVICE[V4]): value(1, 1, 3)}
        assert answer_from(SERVICE[V4]) == port
        following.close()


def test_a_pin_that_was_replaced_is_found_and_put_right(table: KernelSocketTable, bpffs: Path) -> None:
    directory = bpffs / "kproxy"
    (directory / "layout-1" / "asked").rename(directory / "layout-1" / "settings")
    found = {each.object.rpartition("/")[2]: each.change for each in table.problems()}
    assert found == {"asked": Change.MISSING, "settings": Change.MODIFIED}
    table.publish()
    assert table.problems() == []


def test_a_setting_that_was_changed_is_found_and_put_right(table: KernelSocketTable, bpffs: Path) -> None:
    descriptor = open_pin(bpffs / "kproxy" / "layout-1" / "settings")
    write_element("settings", descriptor, 0, struct.pack("=Q", 4711))
    os.close(descriptor)
    (found,) = table.problems()
    assert (found.object, found.change) == ("map settings", Change.MODIFIED)
    table.publish()
    assert table.problems() == []


def test_a_program_of_others_on_the_hook_is_named(table: KernelSocketTable, cgroup: Path) -> None:
    with _foreign_program(cgroup, _ALLOW_MULTI) as number:
        (found,) = table.problems()
        assert (found.object, found.change) == ("hook connect4", Change.UNEXPECTED)
        assert found.detail == f"program {number} of others, connect4"
    assert table.problems() == []


def test_a_program_that_has_the_hook_for_itself_is_an_obstacle(cgroup: Path, bpffs: Path) -> None:
    table = reopened(cgroup, bpffs)
    try:
        with _foreign_program(cgroup, 0) as number:
            with pytest.raises(BpfError, match="connect4") as caught:
                table.publish()
            assert caught.value.kind is BpfFailure.OCCUPIED
            assert not table.published
            present = [hook_programs(cgroup, hook).programs for hook in programs.HOOKS.values()]
            assert sorted(present, key=len) == [(), (), (), (number,)]
            assert not list((bpffs / "kproxy").glob("link-*"))
        table.publish()
        assert table.problems() == []
    finally:
        table.remove()


def test_a_program_above_that_has_the_hook_for_itself_is_an_obstacle(cgroup: Path, bpffs: Path) -> None:
    below = cgroup / "below"
    below.mkdir()
    try:
        table = KernelSocketTable.open(below, bpffs / "kproxy", SMALL)
        with _foreign_program(cgroup, 0), pytest.raises(BpfError, match="for itself") as caught:
            table.publish()
        assert caught.value.kind is BpfFailure.OCCUPIED
        assert f"connect4 at {cgroup}:" in caught.value.message
        table.remove()
    finally:
        below.rmdir()


def test_another_cgroup_gets_links_of_its_own(table: KernelSocketTable, cgroup: Path, bpffs: Path) -> None:
    other = cgroup / "below"
    other.mkdir()
    try:
        table.close()
        following = KernelSocketTable.open(other, bpffs / "kproxy", SMALL)
        following.publish()
        assert following.problems() == []
        assert not hook_programs(cgroup, programs.HOOKS["connect4"]).programs
        assert len(hook_programs(other, programs.HOOKS["connect4"]).programs) == 1
        following.remove()
    finally:
        other.rmdir()


def test_pins_of_others_in_the_directory_stay(cgroup: Path, bpffs: Path) -> None:
    """The directory may be the root of the bpffs, where other programs have theirs."""
    (bpffs / "tc" / "globals").mkdir(parents=True)
    table = KernelSocketTable.open(cgroup, bpffs, SMALL)
    table.publish()
    (bpffs / "link-connect4").rename(bpffs / "of-others")
    table.publish()
    table.remove()
    assert (bpffs / "tc" / "globals").is_dir()
    assert (bpffs / "of-others").exists()
    assert not [path for path in bpffs.iterdir() if path.name.startswith(("link-", "layout-"))]


def test_a_process_that_took_over_the_place_is_not_disturbed(
    table: KernelSocketTable, cgroup: Path, bpffs: Path
) -> None:
    """Its directory was removed, and another process made it again."""
    assert remove_published(bpffs / "kproxy")
    other = reopened(cgroup, bpffs)
    try:
        other.publish()
        with pytest.raises(BpfError, match="another process") as caught:
            table.publish()
        assert caught.value.kind is BpfFailure.OCCUPIED
        assert other.problems() == []
    finally:
        other.remove()


def test_a_directory_on_another_file_system_is_refused(cgroup: Path, tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="no bpffs") as caught:
        KernelSocketTable.open(cgroup, tmp_path / "kproxy", SMALL)
    assert caught.value.kind is BpfFailure.MISSING
    assert "mount -t bpf" in caught.value.message
    assert not (tmp_path / "kproxy").exists()


def test_a_read_only_bpffs_without_pins_is_refused(cgroup: Path, bpffs: Path) -> None:
    _remount_read_only(bpffs)
    with pytest.raises(BpfError, match="read-only") as caught:
        reopened(cgroup, bpffs)
    assert caught.value.kind is BpfFailure.MISSING


def test_a_bpffs_that_becomes_read_only_serves_on_but_takes_no_new_maps(
    table: KernelSocketTable, bpffs: Path
) -> None:
    with endpoint(V4) as port:
        serve(table, V4, port)
        _remount_read_only(bpffs)
        try:
            grown = table.grow(LARGER)
            with pytest.raises(BpfError, match="read-only") as caught:
                table.publish(grown)
            assert caught.value.kind is BpfFailure.MISSING
            grown.close()
            assert answer_from(SERVICE[V4]) == port
            table.publish()
            assert table.problems() == []
        finally:
            _remount_writable(bpffs)


def test_pins_of_a_read_only_bpffs_cannot_be_adopted_and_the_failure_says_what_serves(
    table: KernelSocketTable, cgroup: Path, bpffs: Path
) -> None:
    """The kernel opens pins for writing only: nothing can change or end what they hold."""
    table.close()
    _remount_read_only(bpffs)
    try:
        with pytest.raises(BpfError, match="read-only") as caught:
            reopened(cgroup, bpffs)
        assert caught.value.kind is BpfFailure.MISSING
        assert "programs of a former process are attached" in caught.value.message
    finally:
        _remount_writable(bpffs)
        assert remove_published(bpffs / "kproxy")


def test_clean_up_without_opening_detaches_at_once(
    table: KernelSocketTable, cgroup: Path, bpffs: Path
) -> None:
    assert remove_published(bpffs / "kproxy")
    assert not (bpffs / "kproxy").exists()
    assert not any(hook_programs(cgroup, hook).programs for hook in programs.HOOKS.values())
    assert not remove_published(bpffs / "kproxy")
    assert {each.change for each in table.problems()} == {Change.MISSING}
    table.publish()
    assert table.problems() == []


def _detach_link(pin: Path) -> None:
    descriptor = open_pin(pin)
    links.detach(descriptor, pin.name)
    os.close(descriptor)


@contextmanager
def _foreign_program(cgroup: Path, flags: int) -> Iterator[int]:
    """A program at connect4 that lets everything pass, attached without a link; its id."""
    let_pass = struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    program = programs.load("connect4", Program(let_pass, ()), {})
    target = os.open(cgroup, os.O_RDONLY)
    hook = programs.HOOKS["connect4"]
    request = syscall.Buffer(struct.pack("=IIII", target, program, hook, flags))
    assert syscall.call(_ATTACH, request, 16) == 0  # type: ignore[arg-type]
    try:
        yield programs.program_info(program).number
    finally:
        request = syscall.Buffer(struct.pack("=IIII", target, program, hook, 0))
        assert syscall.call(_DETACH, request, 16) == 0  # type: ignore[arg-type]
        os.close(target)
        os.close(program)


def _remount_read_only(bpffs: Path) -> None:
    _remount(bpffs, _REMOUNT | _READ_ONLY)


def _remount_writable(bpffs: Path) -> None:
    _remount(bpffs, _REMOUNT)


def _remount(bpffs: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"bpf", os.fsencode(bpffs), b"bpf", flags, None) == 0
