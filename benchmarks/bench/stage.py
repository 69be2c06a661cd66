"""The environment of one contender: a node, its pods, an API server and a client.

The process that opens a Stage must be in a network namespace of its own; that is the node. For a mode whose
programs are at the node's cgroup, contender and client are in one.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from pyroute2 import IPRoute

from benchmarks.bench import answerer, processes
from benchmarks.bench.contenders import NODE, OF_KPROXY_ONLY, Contender
from benchmarks.cluster import Object
from kproxy_lab.apiserver import ApiServer
from kproxy_lab.lab.cgroups import HOST, NodeCgroup, visiting
from kproxy_lab.lab.owners import owned_prefix

GLANCE = 1.0
"""Seconds between checks whether the contender still runs."""


class GaveUp(Exception):
    """The contender ended, or did not get there in time."""


class Stage:
    """Close it to end everything that it started."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.api = ApiServer(bookmark_interval=60)
        self._stack = contextlib.ExitStack()
        self.program: subprocess.Popen[bytes] | None = None
        self._cgroup: NodeCgroup | None = None
        self._host: Path | None = None

    def __enter__(self) -> Self:
        try:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._wire()
            if self.contender.mode in OF_KPROXY_ONLY:
                self._cgroup = self._stack.enter_context(
                    NodeCgroup(owned_prefix(secrets.token_hex(3)) + "node")
                )
                self._host = self._cgroup.child(HOST)
            self._stack.enter_context(self.api)
            self.api.apply(_node(), validate=False)
            self.kubeconfig = self._folder / "kubeconfig"
            self.api.kubeconfig(self.kubeconfig)
            with visiting(self._host):
                self._prober = self._stack.enter_context(_Helper("benchmarks.bench.prober"))
            self._stack.callback(self.stop)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> float:
        """Start the contender; returns when, in seconds of CLOCK_MONOTONIC."""
        path = f"{self.contender.path(self._folder / 'bin')}:{os.environ['PATH']}"
        log = (self._folder / "log").open("wb")
        began = time.monotonic()
        with log, visiting(self._host):
            self.program = subprocess.Popen(
                [*self.contender.argv(self.kubeconfig), *self._own_flags()],
                env={**os.environ, "PATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        processes.share_priority(self.program.pid)
        return began

    def stop(self) -> None:
        """End the contender; its rules stay."""
        program, self.program = self.program, None
        if program is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGTERM)
        try:
            program.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()

    def log(self) -> str:
        """What the contender wrote since it was last started."""
        return (self._folder / "log").read_text(errors="replace")

    def runs(self) -> bool:
        """Whether the contender was started and has not ended."""
        return self.program is not None and self.program.poll() is None

    def until(self, address: str, port: int = 80, *, timeout: float, **wanted: Any) -> float:
        """Wait until packets meet what is wanted; returns when. Raises GaveUp."""
        deadline = time.monotonic() + timeout
        ended = False
        while not ended and (left := deadline - time.monotonic()) > 0:
            ended = not self.runs()
            command = {
                "do": "until",
                "address": address,
                "port": port,
                "timeout": min(left, GLANCE),
                **wanted,
            }
            answer = self.command(command)
            if answer["at"] is not None:
                return float(answer["at"])
        last = "".join(f"\n  {line}" for line in self.log().splitlines()[-5:])
        reason = "the program ended" if ended else f"not within {timeout:.0f} s"
        raise GaveUp(f"{address}:{port} did not become as wanted: {reason}{last}")

    def calm(self, timeout: float) -> None:
        """Wait until the contender uses less than 5 % of a core in two samples, or until a limit."""
        deadline = time.monotonic() + timeout
        quiet, before = 0, self.cpu_seconds()
        while quiet < 2 and time.monotonic() < deadline:
            threading.Event().wait(GLANCE)
            now = self.cpu_seconds()
            quiet = quiet + 1 if now - before < GLANCE / 20 else 0
            before = now

    def command(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command to the client and return its reply."""
        return dict(json.loads(self._prober.ask(json.dumps(command))))

    def cpu_seconds(self) -> float:
        """User and system time of the contender and its children."""
        return processes.cpu_seconds(self._pid())

    def peak_mb(self) -> float:
        """The most memory the contender's own process has held."""
        return processes.peak_mb(self._pid())

    def resident_mb(self) -> float:
        """The memory of the contender and its children now."""
        return processes.resident_mb(self._pid())

    def _own_flags(self) -> tuple[str, ...]:
        if self._cgroup is None:
            return ()
        pins = self._cgroup.bpffs / "kproxy"
        return f"--ebpf-cgroup-root={self._cgroup.path}", f"--ebpf-pin-directory={pins}"

    def _pid(self) -> int:
        if self.program is None or not self.runs():
            raise GaveUp("it does not run")
        return self.program.pid

    def _wire(self) -> None:
        pods = self._stack.enter_context(_Helper("benchmarks.bench.answerer", "unshare", "--net"))
        pods.ask()
        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
            peer = {"ifname": answerer.CABLE, "net_ns_pid": pods.pid}
            route.link("add", ifname="uplink", kind="veth", peer=peer)
            uplink = route.link_lookup(ifname="uplink")[0]
            route.link("set", index=uplink, state="up")
            route.addr("add", index=uplink, address=answerer.NODE_ADDRESS, prefixlen=24)
            route.route("add", dst="default", gateway=answerer.ADDRESS)
        if pods.ask("go") != "ready":
            raise GaveUp("the pods' namespace could not be made")


class _Helper:
    """A process of a module of this package that replies to each line with a line."""

    def __init__(self, module: str, *before: str) -> None:
        argv = [*before, sys.executable, "-m", module]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, line: str | None = None) -> str:
        """Send a line, if there is one, and return the next line of the process."""
        if self._process.stdin is None or self._process.stdout is None:
            raise GaveUp("a helper has no pipes")
        if line is not None:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._process.stdout.readline().strip()


class MemoryWatch:
    """The most memory that a contender and its children hold together, sampled while the block runs."""

    PERIOD = 0.05

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self.PERIOD):
            program = self._stage.program
            if program is not None:
                self.peak_mb = max(self.peak_mb, processes.resident_mb(program.pid))


def _node() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        "spec": {"podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": answerer.NODE_ADDRESS}]},
    }
