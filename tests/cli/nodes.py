"""Nodes for the commands that look at one: a fresh network namespace, and commands run in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kproxy_lab import forkserver
from tests.suite import mounts

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
CLUSTER = "10.244.0.0/16,fd00:10:244::/56"
FLAGS = ["--manifests", str(EXAMPLES), "--cluster-cidr", CLUSTER, "--hostname-override", "node-a"]
LIMIT_AS_IT_IS = "--conntrack-max-per-core=0"
"""Its parameter belongs to the machine: no other network namespace can write it."""
FLAGS.append(LIMIT_AS_IT_IS)
PATIENCE = 120.0
"""Seconds after which a command will not end any more."""


def kproxy(*arguments: str, through: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command in this thread's network namespace, `through` another program."""
    if through:
        mounts.needed()
    command = [*through, sys.executable, "-m", "kproxy", *arguments]
    if forkserver.available(command):
        return forkserver.run(command, Path("/proc/thread-self/ns/net"), timeout=PATIENCE)
    return subprocess.run(command, check=False, capture_output=True, text=True)


def do(*command: str, stdin: str | None = None) -> str:
    """Run a tool that must succeed; what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, input=stdin).stdout


def iptables(variant: str, command: str, six: bool = False) -> str:
    """`iptables` of a variant with these arguments."""
    return do(f"ip{'6' if six else ''}tables-{variant}", *command.split())


def rules() -> str:
    """Everything that rules are, of both variants and families, without packet counters."""
    dumps = [
        do(f"{name}-{variant}-save") for name in ("iptables", "ip6tables") for variant in ("nft", "legacy")
    ]
    lines = [line for dump in dumps for line in dump.splitlines() if not line.startswith("#")]
    return "\n".join(line.partition(" [")[0] if line.startswith(":") else line for line in lines)


def run_once(*flags: str) -> None:
    """Let `kproxy run` program this node."""
    done = kproxy("run", "--once", "--healthz-bind-address", "", *FLAGS, *flags)
    assert done.returncode == 0, done.stderr
