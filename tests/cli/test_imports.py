"""Commands that scripts and probes call often import no library that they do not use.

The check is on what is imported, not on time, so it is the same on every machine.
"""

import subprocess
import sys

import pytest

HEAVY = {"iptc", "kubernetes", "prometheus_client", "pyroute2", "rich", "tenacity", "urllib3", "yaml"}
"""Top-level modules that take a tenth of a command's time or more."""

LOGGING = {"asyncio", "structlog"}
"""The same, for commands that log nothing."""

ROOMS = {"agent", "inspect", "kernel", "modes", "node", "sources"}
"""Rooms of kproxy that only commands with work in the kernel or the cluster need."""

PROGRAM = """
import sys
from kproxy.cli.main import main
try:
    main(sys.argv[1:], prog_name="kproxy")
finally:
    sys.stdout.flush()
    print(*sys.modules, file=sys.stderr)
"""


def imported(*arguments: str) -> tuple[str, set[str]]:
    """Run a command in a new interpreter; return what it printed, and the names of all imported modules."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "printed", "unused"),
    [
        (["--help"], "Keep this node's rules in step", HEAVY | LOGGING),
        (["--version"], "version", HEAVY | LOGGING),
        (["status", "--help"], "--wait", HEAVY | LOGGING),
        (["run", "--help"], "--proxy-mode", HEAVY | LOGGING),
        (["check", "--help"], "--proxy-mode", HEAVY | LOGGING),
        (["status", "--address", "127.0.0.1:9"], "", HEAVY),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_uses(arguments: list[str], printed: str, unused: set[str]) -> None:
    output, modules = imported(*arguments)
    assert printed in output
    assert "kproxy.cli.main" in modules
    assert {name.partition(".")[0] for name in modules} & unused == set()
    assert {name for name in modules for room in ROOMS if name.startswith(f"kproxy.{room}.")} == set()


def test_status_imports_no_other_command() -> None:
    _, modules = imported("status", "--address", "127.0.0.1:9")
    commands = {"check", "cleanup", "diff", "render", "run"}
    assert {f"kproxy.cli.{name}" for name in commands} & modules == set()
    assert "kproxy.config.schema" not in modules


def test_help_of_every_command_names_it() -> None:
    output, _ = imported("--help")
    for name in ("check", "cleanup", "diff", "render", "run", "status"):
        assert f"\n  {name} " in output
