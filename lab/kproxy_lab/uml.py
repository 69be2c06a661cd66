"""Run a command on a real kernel with IPVS, where the running kernel has none.

Debian's user-mode-linux is a Linux kernel that runs as an ordinary process on the machine's own file
system, so the same programs, the same checkout and the same tests run in it.
`python -m kproxy_lab.uml -- COMMAND` boots it (about four seconds), runs the command in the current
directory and returns its exit status.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from kproxy.plan.schedulers import SCHEDULERS

KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
PACKAGE = "user-mode-linux"

LOADED = (
    *("ip_vs", *(f"ip_vs_{name}" for name in SCHEDULERS)),
    *("dummy", "veth", "bridge", "nf_conntrack", "nf_conntrack_netlink", "nfnetlink_acct", "sctp"),
    *("ip_set", "ip_set_hash_ip", "ip_set_hash_ipport", "ip_set_hash_ipportip", "ip_set_hash_ipportnet"),
    *(f"{family}table_{table}" for family in ("ip", "ip6") for table in ("nat", "filter", "mangle")),
    *("xt_set", "xt_addrtype", "xt_comment", "xt_mark", "xt_statistic", "xt_recent", "xt_conntrack"),
    *("xt_nfacct", "xt_MASQUERADE", "xt_nat", "xt_tcpudp", "xt_sctp", "ipt_REJECT", "ip6t_REJECT"),
)
"""Modules that are loaded at the start; those that this kernel does not have as modules are passed over."""

_TAIL = 40
_TOUCHED = 768 << 20
"""Bytes that must be free for a kernel's memory: measured 500 MB of the 2 GB for this project's tests."""


class UmlUnavailable(RuntimeError):
    """The kernel cannot be booted here; the message says what is missing."""


class UmlDied(RuntimeError):
    """The kernel ended before the command did; the message holds the end of what it printed."""


def inside() -> bool:
    """Whether this process runs on such a kernel."""
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def missing() -> str:
    """Why the kernel cannot be booted here; "" if it can."""
    if shutil.which(KERNEL) is None:
        return f"no {KERNEL} (Debian package {PACKAGE})"
    if not any(MODULES.glob("*/modules.dep")):
        return f"no kernel modules in {MODULES} (Debian package {PACKAGE})"
    for program, package in (("modprobe", "kmod"), ("setpriv", "util-linux"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            return f"no {program} (Debian package {package})"
    if os.geteuid() != 0:
        return "not root: files would not belong to the tests' user"
    return ""


def boot_failure() -> str:
    """Why the kernel does not boot here although nothing is `missing()`; "" if it does.

    Boots it with a program that ends at once. Possible reasons: no ptrace, no executable memory (a shared
    memory mounted noexec), seccomp. A kernel that boots at the second try counts as booting.
    """
    reason = ""
    for _ in range(2):
        try:
            run(["true"], timeout=60, memory="256M", modules=())
        except (UmlUnavailable, UmlDied, TimeoutError, OSError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = f"{KERNEL} does not boot here: {lines[-1] if lines else type(error).__name__}"
        else:
            return ""
    return reason


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    memory: str = "2G",
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    number: int = 0,
    modules: Sequence[str] = LOADED,
) -> int:
    """Boot, run `argv` in the current directory, return its exit status (128 + n for signal n).

    `on_line` gets every line that the command prints. Kernels that run side by side get a `number` each, so
    that they keep to processors of their own. Raises UmlUnavailable, UmlDied, or TimeoutError after `timeout`
    seconds.
    """
    if reason := missing():
        raise UmlUnavailable(reason)
    with tempfile.TemporaryDirectory(prefix="kproxy-uml-") as temporary:
        directory = Path(temporary)
        status = directory / "status"
        init = _write_scripts(directory, argv, environment or {}, modules, status)
        tail: deque[str] = deque(maxlen=_TAIL)
        command = [
            *_confined(),
            KERNEL,
            f"mem={memory}",
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}"),
            *("con=null", "con0=null,fd:1", "quiet", f"umid=kproxy-{os.getpid()}-{threading.get_ident()}"),
        ]
        expired = False
        with _started(command, directory, number) as process:

            def expire() -> None:
                nonlocal expired
                expired = True
                _kill(process)

            timer = threading.Timer(timeout, expire)
            timer.start()
            try:
                assert process.stdout is not None  # noqa: S101 - asked for
                for line in process.stdout:
                    text = line.rstrip("\r\n")
                    tail.append(text)
                    if on_line is not None:
                        on_line(text)
            finally:
                timer.cancel()
        if expired:
            raise TimeoutError(
                f"the command had not ended after {timeout:g} s; it printed:\n" + "\n".join(tail)
            )
        if not status.exists():
            raise UmlDied("the kernel ended before the command did; it printed:\n" + "\n".join(tail))
        return int(status.read_text())


def _confined() -> tuple[str, ...]:
    """Return the prefix of the kernel's command line that ends the kernel when this thread ends.

    The kernel's processes are processes of this machine, held by ptrace: a signal to one of them leaves the
    others. As a PID namespace they end together, with its first process (pid_namespaces(7)). Where no PID
    namespace can be made, the kernel is asked to end and stops its processes itself.
    """
    namespace = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--")
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        return ("setpriv", "--pdeathsig", "TERM", "--")
    # The first process of a namespace takes no signal that it has no handler for; a shell takes that place.
    return ("setpriv", "--pdeathsig", "KILL", "--", *namespace, "sh", "-c", '"$@"; exit', "kernel")


@contextlib.contextmanager
def _started(command: Sequence[str], directory: Path, number: int) -> Iterator[subprocess.Popen[str]]:
    with _one_processor(os.getpid() + number):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(_place_of_memory(directory))},
        )
    with process:
        try:
            yield process
        finally:
            _kill(process)


def _place_of_memory(directory: Path) -> Path:
    """Return the directory of the kernel's memory file: /dev/shm if it can be used, because a disk is slow.

    The kernel executes from that file and takes its pages as it touches them. In containers, /dev/shm is
    often mounted noexec or holds 64 MB.
    """
    shared = Path("/dev/shm")  # noqa: S108
    if not shared.is_dir():
        return directory
    found = os.statvfs(shared)
    if found.f_flag & os.ST_NOEXEC or found.f_bavail * found.f_frsize < _TOUCHED:
        return directory
    return shared


@contextlib.contextmanager
def _one_processor(number: int) -> Iterator[None]:
    """Pin processes started during the block to one of the processors that this thread may use.

    Each system call in the kernel is a switch between processes of the host, which takes twice as long from
    one processor to another.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[number % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _write_scripts(
    directory: Path, argv: Sequence[str], environment: Mapping[str, str], modules: Sequence[str], status: Path
) -> Path:
    """Write the first program that the kernel runs, and the one with which it loads modules."""
    for version in MODULES.iterdir():
        place = directory / "lib" / "modules"
        place.mkdir(parents=True, exist_ok=True)
        (place / version.name).symlink_to(version)
    modprobe = _script(directory / "modprobe", [f'exec modprobe -d {shlex.quote(str(directory))} "$@"'])
    variables = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "TMPDIR": "/run/tmp",
        **environment,
    }
    return _script(
        directory / "init",
        [
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            "mount -t proc proc /proc",
            "mount -t sysfs sys /sys",
            "mount -t tmpfs tmpfs /run",
            "mkdir -p /run/tmp /run/netns /run/lock",
            "mkdir -p /dev/shm /dev/pts",
            "mount -t tmpfs shm /dev/shm",
            "mount -t devpts pts /dev/pts",
            f"echo {shlex.quote(str(modprobe))} > /proc/sys/kernel/modprobe",
            *([f"{shlex.quote(str(modprobe))} -qa {' '.join(modules)}"] if modules else []),
            "ip link set lo up",
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"{shlex.join(argv)} </dev/null",
            f"echo $? > {shlex.quote(str(status))}",
            "sync",
            "echo o > /proc/sysrq-trigger",
            "sleep 10",
        ],
    )


def _script(path: Path, lines: Iterable[str]) -> Path:
    # In braces, the shell reads all of it before it does anything.
    path.write_text("#!/bin/sh\n{\n" + "\n".join(lines) + "\nexit\n}\n")
    path.chmod(0o755)
    return path


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--memory", default="2G", show_default=True, help="Memory of the kernel.")
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds until the kernel is stopped.")
@click.argument("argv", nargs=-1, required=True, metavar="-- COMMAND...")
def main(memory: str, timeout: float, argv: tuple[str, ...]) -> None:
    """Run COMMAND on a user-mode kernel that has IPVS."""
    try:
        status = run(argv, timeout=timeout, memory=memory, on_line=click.echo)
    except (UmlUnavailable, UmlDied, TimeoutError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)


if __name__ == "__main__":
    main()
