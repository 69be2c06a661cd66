"""What iptables-restore 1.8.9 says, and what kproxy makes of it."""

# ruff: noqa: E501, ISC004  (messages are data here and are kept in one piece)

from __future__ import annotations

import pytest

from kproxy.kernel.xtables.failures import from_exit
from kproxy.kernel.xtables.types import FailureKind

CASES = [
    # legacy, the kernel refuses: the COMMIT line is named
    (1, "iptables-restore: line 74 failed\n", FailureKind.RULE, 74),
    (
        2,
        "iptables-restore v1.8.9 (legacy): Couldn't load match `nosuch':No such file or directory\n\n"
        "Error occurred at line: 3\nTry `iptables-restore -h' or 'iptables-restore --help' for more information.\n",
        FailureKind.RULE,
        3,
    ),
    (
        4,
        "iptables-nft-restore v1.8.9 (nf_tables): \n"
        "line 3: RULE_APPEND failed (Invalid argument): rule in chain A\n"
        "line 5: RULE_APPEND failed (Invalid argument): rule in chain A\n",
        FailureKind.RULE,
        3,
    ),
    (1, "iptables-nft-restore: line 2 failed: No chain/target/match by that name.\n", FailureKind.RULE, 2),
    (2, "iptables-nft-restore v1.8.9 (nf_tables): Chain 'X' does not exist\nError occurred at line: 4\n", FailureKind.RULE, 4),
    (4, "iptables-nft-restore v1.8.9 (nf_tables): \nline 4: CHAIN_DEL failed (Device or resource busy): chain AA\n", FailureKind.RULE, 4),
    (1, "iptables-restore: COMMIT expected at line 3\n", FailureKind.RULE, 3),
    (
        4,
        "Can't lock /run/xtables.lock: Resource temporarily unavailable\n"
        "Another app is currently holding the xtables lock. Stopped waiting after 1s.\n",
        FailureKind.LOCKED,
        None,
    ),
    (4, "iptables-restore: line 9 failed: Resource temporarily unavailable.\n", FailureKind.LOCKED, 9),
    (
        4,
        "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: "
        "Permission denied (you must be root)\n",
        FailureKind.MISSING,
        None,
    ),
    (
        2,
        "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'\n\n"
        "Error occurred at line: 1\n",
        FailureKind.MISSING,
        1,
    ),
    (
        4,
        "iptables-nft-restore v1.8.9 (nf_tables): \n"
        "line 1: CHAIN_ADD failed (No such file or directory): chain PREROUTING\n",
        FailureKind.MISSING,
        1,
    ),
    (1, "iptables-nft-restore: table `nat' is incompatible, use 'nft' tool.\n", FailureKind.MISSING, None),
    (-9, "", FailureKind.INTERRUPTED, None),
    (1, "iptables-restore: memory allocation problem\n", FailureKind.OTHER, None),
    (127, "", FailureKind.OTHER, None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "stderr", "kind", "line"), CASES)
def test_failures_are_understood(status: int, stderr: str, kind: FailureKind, line: int | None) -> None:
    error = from_exit(status, stderr.encode())
    assert (error.kind, error.line) == (kind, line)
    assert error.message
    assert "for more information" not in error.message
