"""A scratch network namespace: what is done in it stays in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from tests.kernel.namespace import fresh_network


@fresh_network
def test_what_is_made_there_is_not_here_and_results_come_back() -> None:
    def work() -> list[str]:
        subprocess.run(["ip", "link", "add", "scratch0", "type", "bridge"], check=True)
        return [name for _, name in socket.if_nameindex()]

    assert "scratch0" in in_scratch_network(work)
    assert "scratch0" not in [name for _, name in socket.if_nameindex()]


@fresh_network
def test_errors_come_back() -> None:
    def work() -> None:
        raise KeyError("told")

    with pytest.raises(KeyError, match="told"):
        in_scratch_network(work)


def test_without_the_right_nothing_is_run() -> None:
    if os.geteuid() != 0:
        with pytest.raises(ScratchUnavailable):
            in_scratch_network(lambda: None)
        return
    program = (
        "from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network\n"
        "try:\n    in_scratch_network(lambda: print('ran'))\n"
        "except ScratchUnavailable as error:\n    print(error)\n"
    )
    lacking = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-c", program]
    printed = subprocess.run(lacking, check=True, capture_output=True, text=True).stdout
    assert printed == "no network namespace for trials can be made: Operation not permitted\n"
