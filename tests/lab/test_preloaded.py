"""A kproxy that is forked from a process which has imported it is like one that was executed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from kproxy import __version__
from kproxy_lab import forkserver
from kproxy_lab.forked import Child
from kproxy_lab.lab import Lab, Namespace
from tests.support import reference_sync

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(Lab.missing()), reason="; ".join(Lab.missing()) or "a lab can be built"),
]

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{port: 80}]}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("preloaded") / "socket"
    with forkserver.serving(path), pytest.MonkeyPatch.context() as patch:
        patch.setenv(forkserver.SOCKET, str(path))
        yield


@pytest.fixture
def place(served: None) -> Iterator[Namespace]:
    with reference_sync.namespace() as made:
        yield made


def kproxy(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kproxy", *arguments]


def executed(*arguments: str) -> list[str]:
    """The same, through a program that becomes it."""
    return ["env", *kproxy(*arguments)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["run", "--nope"],
        ["run", "--config", "/nowhere"],
        ["render", "--manifests", "here"],
        [],
    ],
    ids=" ".join,
)
def test_what_it_prints_and_returns_is_the_same(
    place: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """The manifests are looked for in the working directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "service.yaml").write_text(SERVICE)
    monkeypatch.chdir(tmp_path)
    ours = place.run(kproxy(*arguments), check=False)
    theirs = place.run(executed(*arguments), check=False)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert ours.stdout or ours.stderr


def test_the_environment_is_the_callers(place: Namespace) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        place.run(kproxy("run"), env={**os.environ, "KPROXY_PROXY_MODE": "userspace"})
    assert "userspace" in raised.value.stderr


@contextmanager
def running(place: Namespace, tmp_path: Path, argv: list[str]) -> Iterator[Child]:
    (tmp_path / "service.yaml").write_text(SERVICE)
    flags = ["--manifests", str(tmp_path), "--hostname-override", "node-a", "--healthz-bind-address", ""]
    place.run(["ip", "link", "set", "lo", "up"])
    with place.popen([*argv, "run", *flags], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_synced(process: Child) -> None:
    assert process.stderr is not None
    assert any(b"event=synced" in line for line in process.stderr)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_it_can_be_signalled_and_its_end_is_reported(
    place: Namespace, tmp_path: Path, end: signal.Signals
) -> None:
    with running(place, tmp_path, kproxy()) as process:
        wait_synced(process)
        assert process.poll() is None
        process.send_signal(end)
        assert process.wait(60) == (0 if end == signal.SIGTERM else -end)
        assert process.poll() == process.returncode


def test_it_has_the_files_the_session_and_the_network_of_one_that_was_executed(
    served: None, tmp_path: Path
) -> None:
    def traits(place: Namespace, process: Child) -> dict[str, object]:
        proc = Path(f"/proc/{process.pid}")
        links = [str(path.readlink()) for path in (proc / "fd").iterdir()]
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "files": sorted(link.partition(":[")[0] for link in links),
            "directory": (proc / "cwd").readlink(),
            "network": (proc / "ns" / "net").samefile(place.path),
            "session": (os.getsid(process.pid), os.getpgid(process.pid)),
            "command": (proc / "comm").read_text(),
            **{name: status[name] for name in ("Umask", "SigBlk", "SigIgn", "SigCgt", "CapEff", "Threads")},
        }

    with (
        reference_sync.namespace() as here,
        reference_sync.namespace() as there,
        running(here, tmp_path, kproxy()) as ours,
        running(there, tmp_path, executed()) as theirs,
    ):
        wait_synced(ours)
        wait_synced(theirs)
        # Each has files and signals of its own for as long as a program runs that it started.
        patiently = Retrying(
            stop=stop_after_delay(60),
            wait=wait_fixed(0.05),
            retry=retry_if_exception_type((AssertionError, FileNotFoundError)),
            reraise=True,
        )
        for attempt in patiently:
            with attempt:
                assert traits(here, ours) == traits(there, theirs)
        assert traits(here, ours)["network"]


def test_a_version_is_printed_without_the_process(place: Namespace) -> None:
    """A command line that is not kproxy's own is executed."""
    assert not forkserver.available(["env", *kproxy()])
    assert __version__ in place.run(executed("--version")).stdout


def test_a_process_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(forkserver.SOCKET, str(tmp_path / "nobody"))
    with reference_sync.namespace() as place, pytest.raises(FileNotFoundError):
        place.run(kproxy("--version"))
