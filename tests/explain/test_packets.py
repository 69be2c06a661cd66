"""What `explain` says of the kernel's rules is what packets do; with KPROXY_EXPLAIN=1000 of so many packets."""

from collections.abc import Iterator

import pytest

from kproxy_lab.lab import Lab
from tests.explain.judge import Judge, run, settings
from tests.peer.objects import SPEC

CASES = {
    "nftables": settings(proxy_mode="nftables"),
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with Lab(SPEC) as made:
        yield made


@pytest.mark.root
@pytest.mark.parametrize("case", CASES)
def test_every_packet_goes_where_the_interpreter_says(lab: Lab, case: str) -> None:
    judge = lab.node.call(Judge, lab, CASES[case])
    for family, found in run(lab, judge, seed=17).items():
        assert not found.wrong, f"{family}: {len(found.wrong)} of {found.total}\n" + "\n".join(found.wrong[:5])
        assert found.kinds["forward"] and found.kinds["forward masquerade"], found.kinds
        print(f"{case} {family}: {found.agreed}/{found.total} {dict(found.kinds)}")
