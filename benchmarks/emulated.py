"""Run a command on Debian's kernel in an emulated machine whose clock counts instructions.

    apt-get install qemu-system-x86 busybox-static cpio kmod
    apt-get download linux-image-6.1.0-56-amd64 && dpkg-deb -x linux-image-*.deb KERNEL
    python -m benchmarks.emulated --kernel KERNEL -- .venv/bin/python -m benchmarks.flowtables

For kernel features that the running kernel has not. The emulated machine has one core, and its clock counts a
nanosecond for each instruction, whatever else this machine does: times in it are numbers of instructions, and
know nothing of caches. The root file system is this machine's, read-only.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

MODULES = ("virtio_pci", "9pnet_virtio", "9p")
"""What the root file system needs."""

PROGRAMS = ("qemu-system-x86_64", "busybox", "cpio", "depmod", "modprobe")

FIRST = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
for module in /*.ko; do /bin/busybox insmod $module; done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro root /root
exec /bin/busybox switch_root /root /bin/sh {inner}
"""

INNER = """mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
printf '#!/bin/sh\\nexec /sbin/modprobe -d %s "$@"\\n' {kernel} >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
export PATH=/run:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run PYTHONDONTWRITEBYTECODE=1
ip link set lo up
cd {folder}
echo; echo {begin}
{command} </dev/null
echo {end} $?
echo o >/proc/sysrq-trigger
sleep 60
"""

BEGIN, END = "-- output --", "-- status --"


def run(kernel: Path, command: str, folder: Path, seconds: float) -> int:
    """Boot, run a shell command in a folder, print what it prints; returns its exit status.

    If it did not end in time, or did not start, everything that the machine printed goes to standard error.
    """
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    version = image.name.removeprefix("vmlinuz-")
    with tempfile.TemporaryDirectory() as temporary:
        inner = Path(temporary) / "inner"
        inner.write_text(
            INNER.format(
                kernel=shlex.quote(str(kernel.resolve())),
                folder=shlex.quote(str(folder)),
                command=command,
                begin=BEGIN,
                end=END,
            )
        )
        memory = _first_file_system(kernel.resolve(), version, Path(temporary), inner)
        devices = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
        machine = ["-icount", "shift=0", "-smp", "1", "-m", "2G", "-nographic", "-no-reboot", "-net", "none"]
        started = ["-kernel", str(image), "-initrd", str(memory), "-append", "console=ttyS0 quiet panic=-1"]
        shared = ["-fsdev", devices, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]
        console = Path(temporary) / "console"
        argv = ["qemu-system-x86_64", *machine, *started, *shared]
        with console.open("wb") as out, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, timeout=seconds, check=True)
        printed = console.read_bytes().decode(errors="replace").replace("\r", "")
    output = re.search(rf"^{BEGIN}\n(.*)^{END} (\d+)$", printed, re.DOTALL | re.MULTILINE)
    if output is None:
        print(printed, file=sys.stderr)
        return 1
    print(output[1], end="")
    return int(output[2])


def _first_file_system(kernel: Path, version: str, folder: Path, inner: Path) -> Path:
    """Write the archive of the file system in memory that mounts the root file system."""
    subprocess.run(["depmod", "-b", str(kernel), version], check=True, stderr=subprocess.DEVNULL)
    root = folder / "first"
    for name in ("bin", "proc", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), root / "bin" / "busybox")
    wanted: list[str] = []
    for module in MODULES:
        argv = ["modprobe", "-d", str(kernel), "-S", version, "--show-depends", module]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True)
        wanted += [line.split()[1] for line in shown.stdout.splitlines() if line.startswith("insmod")]
    for number, path in enumerate(dict.fromkeys(wanted)):
        shutil.copy(path, root / f"{number:02}.ko")
    (root / "init").write_text(FIRST.format(inner=shlex.quote(str(inner))))
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in [root, *sorted(root.rglob("*"))])
    archive = folder / "first.cpio"
    with archive.open("wb") as out:
        pack = ["cpio", "--create", "--format=newc", "--quiet"]
        subprocess.run(pack, input=names.encode(), stdout=out, cwd=root, check=True)
    return archive


@click.command()
@click.option("--kernel", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--timeout", "seconds", default=1800.0, show_default=True, help="Seconds of this machine.")
@click.argument("command", nargs=-1, required=True)
def main(kernel: Path, seconds: float, command: tuple[str, ...]) -> None:
    """Run COMMAND in the current directory, as root of the emulated machine."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise click.ClickException(f"not installed: {', '.join(missing)}")
    sys.exit(run(kernel, shlex.join(command), Path.cwd(), seconds))


if __name__ == "__main__":
    main()
