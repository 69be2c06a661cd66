"""IPv4 and IPv6 side by side in one run loop: a failure of one is not one of the other."""

from __future__ import annotations

import threading
import time

import pytest

from kproxy.addresses import Family
from kproxy.agent import schedule
from tests.agent.switch_rig import FakeMode, Kernel, Rig


@pytest.mark.parametrize("broken", Family, ids=str)
def test_a_family_that_fails_keeps_no_changes_from_the_other(
    broken: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "FIRST_RETRY", 4000.0)  # seconds: nothing is tried again by itself
    kernel = Kernel()
    rig = Rig(lambda config: FakeMode(kernel, config))
    rig.work()
    kernel.errors["iptables", broken] = "the kernel is out of memory"
    (works,) = set(Family) - {broken}
    stop = threading.Event()
    thread = threading.Thread(target=rig.agent.run, args=(stop,), daemon=True)
    thread.start()
    try:
        for number, name in ((3, "c"), (4, "d"), (5, "e")):
            rig.add(name, number)
            deadline = time.monotonic() + 10
            while f"ns1/{name}" not in kernel.of("iptables")[works]:
                assert time.monotonic() < deadline, f"{name} waits for {broken}"
                threading.Event().wait(0.01)
    finally:
        stop.set()
        rig.store.wake()
        thread.join(10)
    assert kernel.of("iptables")[broken] == set()
