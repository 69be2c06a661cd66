"""A client, a node and a pod: three network namespaces of one process, joined by veth pairs."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

CLIENT, GATEWAY, POD, POD_GATEWAY = "10.200.0.2", "10.200.0.1", "10.128.0.2", "10.128.0.1"

_CLONE_NEWNET: Final = 0x40000000


class Network:
    """Three network namespaces; close it to leave them."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._spaces = {"home": os.open("/proc/self/ns/net", os.O_RDONLY)}
        for name in ("client", "node", "pod"):
            self._call(self._libc.unshare(_CLONE_NEWNET))
            self._spaces[name] = os.open("/proc/self/ns/net", os.O_RDONLY)
            run("ip link set lo up")
        with self.inside("node"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            for name, gateway, other in (("client", GATEWAY, CLIENT), ("pod", POD_GATEWAY, POD)):
                space = f"/proc/{os.getpid()}/fd/{self._spaces[name]}"
                run(f"ip link add to-{name} type veth peer name eth0 netns {space}")
                run(f"ip addr add {gateway}/24 dev to-{name}")
                run(f"ip link set to-{name} up")
                with self.inside(name):
                    run(f"ip addr add {other}/24 dev eth0")
                    run("ip link set eth0 up")
                    run(f"ip route add default via {gateway}")

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Let the calling thread and what it starts be in a namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._call(self._libc.setns(self._spaces[name], _CLONE_NEWNET))
        try:
            yield
        finally:
            self._call(self._libc.setns(before, _CLONE_NEWNET))
            os.close(before)

    def close(self) -> None:
        """Return to the namespace of the start."""
        self._call(self._libc.setns(self._spaces["home"], _CLONE_NEWNET))
        for space in self._spaces.values():
            os.close(space)

    def packets(self, whole: bool) -> None:
        """Let TCP hand whole packets of up to 64 KB from device to device, or none larger than the MTU."""
        state = "on" if whole else "off"
        for name, devices in (("client", ("eth0",)), ("pod", ("eth0",)), ("node", ("to-client", "to-pod"))):
            with self.inside(name):
                for device in devices:
                    run(f"ethtool -K {device} tso {state} gso {state} gro {state}")

    @staticmethod
    def _call(status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(command: str, text: str | None = None) -> None:
    """Run a program, with text as its input. Raises ClickException with what it printed if it fails."""
    done = subprocess.run(command.split(), input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{command}: {done.stderr.strip()}")
