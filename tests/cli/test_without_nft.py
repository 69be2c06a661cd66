"""In nftables mode no command needs the program nft, nor minds what others keep in their tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.nft.netlink import NetlinkNft
from tests.cli.nodes import FLAGS, kproxy
from tests.cli.test_check import OFFLINE, good_node
from tests.kernel.namespace import fresh_network
from tests.kernel.nft_foreign import foreign_sets, write_foreign_set

NFTABLES = ("--proxy-mode", "nftables")
BESIDES = ("--nftables-reject-unallocated", "--cluster-cidr", "10.244.0.0/15,fd00:10:244::/56")
"""Settings that rewrite rules."""


def _instead_of_nft(directory: Path, script: str) -> tuple[str, ...]:
    """What runs a command where nft is this script."""
    where = shutil.which("nft")
    if where is None:
        return ()
    wrapper = directory / "nft"
    wrapper.write_text(f"#!/bin/sh\n{script}\n")
    wrapper.chmod(0o755 if script else 0o644)
    mount = f'mount --bind {wrapper} "$0" && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, str(Path(where).resolve()))


@pytest.mark.parametrize("nft", ["is absent", "hangs"])
def test_every_command_works_beside_a_table_that_nft_cannot_read(nft: str, tmp_path: Path) -> None:
    _serve(nft, tmp_path)


@fresh_network
def _serve(nft: str, directory: Path) -> None:
    runs = directory / "runs"
    script = f"echo $@ >> {runs}\nsleep 1000000" if nft == "hangs" else ""
    through = _instead_of_nft(directory, script)
    good_node()
    write_foreign_set()
    foreign = foreign_sets()
    assert len(foreign) == 1

    def told(*words: str) -> tuple[int, str, str]:
        done = kproxy(*words, through=through)
        return done.returncode, done.stdout, done.stderr

    status, printed, problems = told("check", *OFFLINE, *NFTABLES)
    assert (status, problems) == (0, "")
    assert "nftables IPv4" in printed
    once = ("run", "--once", "--healthz-bind-address", "", *NFTABLES, *FLAGS)
    status, _, problems = told(*once)
    assert status == 0, problems
    assert "sync_failed" not in problems
    served = {family: NetlinkNft().reading(family, "kproxy") for family in Family}
    for reading in served.values():
        assert reading is not None
        assert len((reading.elements or {})["services"]) > 0
    assert told("diff", *NFTABLES, *FLAGS) == (0, "", "")
    assert told("diff", *NFTABLES, *FLAGS, *BESIDES)[0] == 2
    assert told(*once, *BESIDES)[0] == 0
    for family, reading in served.items():
        changed = NetlinkNft().reading(family, "kproxy", portable=True)
        assert changed is not None
        assert reading is not None
        assert changed.elements == reading.elements
    assert told("cleanup")[0] == 0
    assert [NetlinkNft().reading(family, "kproxy") for family in Family] == [None, None]
    assert foreign_sets() == foreign
    assert not runs.exists()


@fresh_network
def test_the_table_is_one_that_old_versions_of_nft_cannot_read() -> None:
    """Else the test above would prove nothing; versions that can read it pass as well."""
    write_foreign_set()
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    version = subprocess.run(["nft", "--version"], capture_output=True, text=True, check=True).stdout
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=False)
    if " v1.0." in version:
        assert listed.returncode < 0 or "ipv4_addr" in listed.stdout
    else:
        assert "ipv4_addr" in listed.stdout
