"""The truth table with packets: every case and random policies, by their own flows and a sample of all."""

import os
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.packets.modes import MODES, Mode
from tests.policy.cases import ALL, Case
from tests.policy.conftest import manifest_world
from tests.policy.random_policies import History
from tests.policy.world import World, parse
from tests.suite.matrix import EVERYTHING, SEED

pytestmark = pytest.mark.root

SAMPLE = 200
"""Flows of each case beside its own, of 3,000 that there are."""
STEPS = int(os.environ.get("KPROXY_POLICY", "25"))
"""Steps of the random history; KPROXY_POLICY=1000 for a long one, KPROXY_SEED for another."""


@pytest.mark.parametrize("case", [case for case in ALL if not case.only], ids=str)
def test_every_case(world: World, case: Case) -> None:
    world.show(case.build(world.pods), case.gone)
    world.check([*parse(case.flows), *world.sample(SAMPLE, case.name)])


def test_from_manifests_in_every_mode(mode: Mode, tmp_path: Path) -> None:
    """Each mode takes its share of the cases, for they share everything but the services."""
    core = [each for each in ALL if each.core]
    turn = [str(each.values[0]) if isinstance(each, ParameterSet) else str(each) for each in MODES].index(
        str(mode)
    )
    with manifest_world(tmp_path, mode) as world:
        world.start(mode)
        for case in core if EVERYTHING else core[turn :: len(MODES)]:
            world.show(case.build(world.pods), case.gone)
            try:
                world.check([*parse(case.flows), *world.sample(SAMPLE, case.name)])
            except AssertionError as error:
                error.add_note(f"in case {case.name}")
                raise


def test_a_random_history(world: World) -> None:
    history = History(SEED, world.base, world.pods)
    told: list[str] = []
    for number in range(STEPS):
        told = history.step()
        world.show(history.objects.values())
        try:
            world.check(world.sample(2 * SAMPLE, (SEED, number)))
        except AssertionError as error:
            error.add_note(f"after step {number}: " + "; ".join(told))
            raise
