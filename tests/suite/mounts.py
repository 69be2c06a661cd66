"""Checks whether a test can make private mounts on this machine."""

import functools
import shutil
import subprocess

import pytest


@functools.cache
def missing() -> str:
    """Return why no mount namespace with private mounts can be made; "" if one can.

    The root directory of a chroot is no mount point, so its mounts cannot be made private: a test's mounts
    would appear on the machine.
    """
    if shutil.which("unshare") is None:
        return "no unshare (util-linux)"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no private mounts: {done.stderr.strip()}"


def needed() -> None:
    """Skip the test, with the reason, if private mounts are not possible."""
    if reason := missing():
        pytest.skip(reason)
