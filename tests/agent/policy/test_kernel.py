"""Whether a kernel can enforce policies: nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.agent.policy import kernel as module
from kproxy.agent.policy.kernel import NftPolicyKernel, PolicyUnavailable
from kproxy.kernel.nft import remedies
from kproxy.kernel.nft.commands import Transaction
from kproxy.kernel.nft.types import NftError, NftFailure


class Lacking:
    """A kernel whose transactions fail for some families."""

    def __init__(self, *families: Family, kind: NftFailure = NftFailure.REFUSED) -> None:
        self._families = families
        self._kind = kind
        self.gives_way: Callable[[], bool] | None = None

    def commit(self, transaction: Transaction) -> None:
        if transaction.family in self._families:
            raise NftError(self._kind, f"table {transaction.target}: no such thing")

    def generation(self) -> None:
        return None


def made(nft: Any) -> NftPolicyKernel:
    return NftPolicyKernel({}, nft)


def test_a_kernel_that_has_everything_enforces_both_families() -> None:
    assert made(Lacking()).usable() == (Family.IPV4, Family.IPV6)


@pytest.mark.parametrize(
    ("kind", "there", "words"),
    [
        (NftFailure.MISSING, False, "load nftables (modprobe nf_tables)"),
        (NftFailure.MISSING, True, "add NET_ADMIN"),
        (NftFailure.REFUSED, True, "use a newer kernel"),
        (NftFailure.INTERRUPTED, True, "try again"),
    ],
)
@pytest.mark.parametrize("family", list(Family), ids=str)
def test_one_family_that_cannot_be_enforced_is_a_refusal_with_a_remedy(
    family: Family, kind: NftFailure, there: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "has_nftables", lambda: there)
    with pytest.raises(PolicyUnavailable) as caught:
        made(Lacking(family, kind=kind)).usable()
    text = str(caught.value)
    assert text.startswith(f"--network-policy: policies of {family} cannot be enforced: table ip")
    assert words in text


def test_a_kernel_without_ipv6_has_no_packets_of_it_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IPV6", tmp_path / "ipv6")
    with capture_logs() as logs:
        assert made(Lacking(Family.IPV6)).usable() == (Family.IPV4,)
    assert [(each["event"], each["family"]) for each in logs] == [("policy_family_unusable", "IPv6")]
    with pytest.raises(PolicyUnavailable):
        made(Lacking(Family.IPV4)).usable()
