"""Load, attach and use the socket table on Debian's kernels, in emulated machines.

    apt-get install qemu-system-x86 busybox-static cpio kmod
    apt-get download linux-image-6.1.0-56-amd64 && dpkg-deb -x linux-image-*.deb KERNEL
    .venv/bin/python -m benchmarks.bpf_kernels KERNEL...

The object has to pass the verifier of every kernel that a node may have, not only that of the running one.
For each kernel this prints what the verifier made of each program, and where connections went. Without
arguments it tries the running kernel. The exit status is 1 if a kernel failed, and 0 if all that could be
tried work.
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks import emulated
from kproxy.addresses import Family
from kproxy.kernel.bpf import cgroups, maps, programs
from kproxy.kernel.bpf.map_set import close_all
from kproxy.kernel.bpf.socket_table import KernelSocketTable, network_namespace_cookie
from kproxy.kernel.bpf.types import SLOT_WORDS, BpfError, Capacity, Sizes

_SMALL = Sizes(Capacity(16, 64), Capacity(16, 64), 16)
_LARGER = Sizes(Capacity(32, 128), Capacity(32, 128), 32)
_SERVICE = {Family.IPV4: "10.96.77.1", Family.IPV6: "fd00:96:77::1"}
_LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
_KIND = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_PORT = 80
_LAZY = 2  # MNT_DETACH


class WrongResult(Exception):
    """A step did not do what it should; the message says what."""


def steps() -> Iterator[tuple[str, str]]:
    """(step, result) on the running kernel. Raises BpfError, OSError, WrongResult."""
    with _mounted(b"cgroup2") as cgroup, _mounted(b"bpf") as bpffs:
        yield "root of cgroup2", f"inode {cgroups.find_root(str(cgroup)).stat().st_ino}"
        yield from _programs()
        table = KernelSocketTable.open(cgroup, bpffs / "kproxy", _SMALL)
        try:
            table.publish()
            yield "links", "attached and pinned"
            for family in Family:
                yield f"connection {family}", _connected(table, family)
            table.publish(table.grow(_LARGER))
            _expect("problems", table.problems(), [])
            yield "larger maps", "published"
            _expect("connections", table.connections(1), [2])
            yield "connections", "counted"
        finally:
            table.close()
        table = KernelSocketTable.open(cgroup, bpffs / "kproxy", _SMALL)
        try:
            _expect("sizes", table.sizes, _LARGER)
            table.publish()
            yield "next process", "adopted"
        finally:
            table.remove()
        try:
            yield "cookie of the network namespace", str(network_namespace_cookie())
        except BpfError as error:
            yield "cookie of the network namespace", error.message


def _programs() -> Iterator[tuple[str, str]]:
    content = programs.connect_object()
    made: dict[str, int] = {}
    try:
        for name, declaration in content.maps.items():
            made[name] = maps.create(name, declaration, 2)
        for name in programs.HOOKS:
            made[f"program {name}"] = programs.load(name, content.programs[name], made)
            count = programs.program_info(made[f"program {name}"]).verified
            yield f"program {name}", f"{count} instructions verified" if count else "verified"
    finally:
        close_all(made)


def _connected(table: KernelSocketTable, family: Family) -> str:
    """Connect to a service of one endpoint; the peer that the client sees."""
    with socket.create_server((_LOOPBACK[family], 0), family=_KIND[family]) as server:
        words, port = SLOT_WORDS[family], server.getsockname()[1]
        slot = _packed(family, _LOOPBACK[family], port).ljust(words * 8, b"\0")
        for number, word in enumerate(struct.unpack(f"={words}Q", slot)):
            table.slots(family)[number] = word
        key = _packed(family, _SERVICE[family], _PORT)
        table.write_frontends(family, {key: struct.pack("=III", 0, 1, 0)})
        with socket.create_connection((_SERVICE[family], _PORT), timeout=60) as client:
            peer = client.getpeername()[:2]
    _expect("peer", peer, (_SERVICE[family], _PORT))
    return "reaches the endpoint; its peer is the service"


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise WrongResult(f"{what}: {found} instead of {wanted}")


def _packed(family: Family, ip: str, port: int) -> bytes:
    return socket.inet_pton(_KIND[family], ip) + struct.pack("!HH", port, 0)


@contextlib.contextmanager
def _mounted(kind: bytes) -> Iterator[Path]:
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as directory:
        if libc.mount(kind, os.fsencode(directory), kind, 0, None):
            raise OSError(ctypes.get_errno(), f"mounting {kind.decode()}")
        try:
            yield Path(directory)
        finally:
            libc.umount2(os.fsencode(directory), _LAZY)


def _try_here() -> int:
    print("kernel:", os.uname().release)
    try:
        for step, result in steps():
            print(f"  {step}: {result}", flush=True)
    except (BpfError, OSError, WrongResult) as error:
        print(f"  FAILED: {error}")
        return 1
    return 0


def _try_kernel(kernel: Path, seconds: float) -> int:
    missing = [program for program in emulated.PROGRAMS if shutil.which(program) is None]
    if missing:
        print(f"{kernel}: skipped: not installed: {', '.join(missing)}")
        return 0
    if len(list((kernel / "boot").glob("vmlinuz-*"))) != 1:
        print(f"{kernel}: skipped: not an unpacked package of one kernel")
        return 0
    command = shlex.join([sys.executable, "-m", "benchmarks.bpf_kernels"])
    return emulated.run(kernel, command, Path.cwd(), seconds)


@click.command()
@click.option("--timeout", "seconds", default=900.0, show_default=True, help="Seconds for each kernel.")
@click.argument("kernels", nargs=-1, type=click.Path(path_type=Path))
def main(kernels: tuple[Path, ...], seconds: float) -> None:
    """Try the unpacked packages KERNELS, or the running kernel."""
    failed = [_try_kernel(kernel, seconds) for kernel in kernels] if kernels else [_try_here()]
    sys.exit(int(any(failed)))


if __name__ == "__main__":
    main()
