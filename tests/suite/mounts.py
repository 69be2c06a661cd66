"""Whether this machine lets a test have mounts of its own."""

import functools
import shutil
import subprocess

import pytest


@functools.cache
def missing() -> str:
    """Why no mount namespace with private mounts can be made; "" if one can.

    The root directory of a chroot is no mount point, so its mounts cannot be made private: what a test mounts
    would appear on the machine.
    """
    if shutil.which("unshare") is None:
        return "no unshare (util-linux)"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no mounts of a test's own: {done.stderr.strip()}"


def needed() -> None:
    """Skip the test with the reason if there is one."""
    if reason := missing():
        pytest.skip(reason)
