"""The tool that tries the programs on Debian's kernels: what it finds here, and why it skips a kernel."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import bpf_kernels, emulated
from kproxy.kernel.bpf.types import BpfError, BpfFailure


@pytest.mark.root
@pytest.mark.usefixtures("table")
def test_every_step_works_on_the_running_kernel() -> None:
    ended = CliRunner().invoke(bpf_kernels.main, [])
    assert ended.exit_code == 0, ended.output
    assert ended.output.count("reaches the endpoint; its peer is the service") == 2
    assert "FAILED" not in ended.output


def test_a_failure_is_named_and_is_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> object:
        yield "root of cgroup2", "inode 1"
        raise BpfError(BpfFailure.REFUSED, "program connect4: Invalid argument; the verifier: R0 !read_ok")

    monkeypatch.setattr(bpf_kernels, "steps", refused)
    ended = CliRunner().invoke(bpf_kernels.main, [])
    assert ended.exit_code == 1
    assert "root of cgroup2: inode 1" in ended.output
    assert "FAILED: program connect4: Invalid argument; the verifier: R0 !read_ok" in ended.output


def test_a_directory_without_a_kernel_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "PROGRAMS", ())
    ended = CliRunner().invoke(bpf_kernels.main, [str(tmp_path)])
    assert ended.exit_code == 0
    assert ended.output == f"{tmp_path}: skipped: not an unpacked package of one kernel\n"


def test_without_an_emulator_a_kernel_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "PROGRAMS", ("qemu-of-no-machine",))
    ended = CliRunner().invoke(bpf_kernels.main, [str(tmp_path)])
    assert ended.exit_code == 0
    assert ended.output == f"{tmp_path}: skipped: not installed: qemu-of-no-machine\n"
