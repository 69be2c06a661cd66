"""Tables and judgements say of every flow what a naive evaluation of the API's text says."""

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from tests.plan.policy import kernel
from tests.plan.policy.objects import (
    ADDRESSES,
    LABELS,
    NAMESPACES,
    NODE,
    NUMBERS,
    OUTSIDE,
    SPECS,
    Json,
    examples,
    namespace,
    planner,
    pod_strategy,
    policy,
)
from tests.plan.policy.oracle import Oracle


def _pods() -> st.SearchStrategy[list[Json]]:
    return st.integers(1, 7).flatmap(
        lambda number: st.tuples(
            *(
                pod_strategy(f"p{n}", st.sampled_from([ADDRESSES[n], ADDRESSES[n], ADDRESSES[n][:1]]))
                for n in range(number)
            )
        ).map(list)
    )


_NAMESPACES = st.lists(st.sampled_from(NAMESPACES), unique=True).flatmap(
    lambda names: st.tuples(*(st.builds(namespace, st.just(name), LABELS) for name in names)).map(list)
)
_POLICIES = st.lists(st.tuples(st.sampled_from(NAMESPACES), SPECS), max_size=5).map(
    lambda found: [policy(f"n{i}", ns, **spec) for i, (ns, spec) in enumerate(found)]
)

_PORTS = list(product(Protocol, (*NUMBERS, 90, 53)))


@examples(100)
@given(pods=_pods(), namespaces=_NAMESPACES, policies=_POLICIES, seed=st.integers(0, 2**16))
def test_every_flow_is_judged_as_the_api_says(
    pods: list[Json], namespaces: list[Json], policies: list[Json], seed: int
) -> None:
    chance = random.Random(seed)
    oracle = Oracle(pods, namespaces, policies, NODE)
    planned = planner(pods, policies, namespaces)
    assert not planned.problems
    for family in Family:
        kernel.check(planned.tables[family], family)
        side = 0 if family is Family.IPV4 else 1
        addresses = [each[side] for each in (*ADDRESSES[: len(pods)], *OUTSIDE)]
        for source, destination in product(addresses, repeat=2):
            for protocol, port in chance.sample(_PORTS, 3):
                expected = oracle.allows(protocol.value, source, destination, port)
                flow = f"{protocol} {source} -> {destination}:{port}"
                table = planned.tables[family]
                assert kernel.passes(table, protocol, source, destination, port) is expected, flow
                judged = planned.judge(protocol, source, destination, port)
                assert judged.allowed is expected, flow
                assert bool(judged.reason) is not expected, flow
