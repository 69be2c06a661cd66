"""SIGHUP before there is a reloader: it is not lost, and later ones go straight through."""

from __future__ import annotations

from typing import cast

from kproxy.agent.service import _Hangups
from kproxy.agent.settings.reload import Reloader


class Reloads:
    """Takes down by which signals it was asked to reload."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def reload(self, reason: str) -> None:
        self.asked.append(reason)


def test_a_hangup_while_the_kernel_is_tried_reloads_as_soon_as_that_is_possible() -> None:
    hangups, reloads = _Hangups(), Reloads()
    hangups.reload("SIGHUP")
    hangups.reload("SIGHUP")
    hangups.follow(cast("Reloader", reloads))
    assert reloads.asked == ["SIGHUP"]
    hangups.reload("SIGHUP")
    assert reloads.asked == ["SIGHUP", "SIGHUP"]


def test_without_a_hangup_nothing_is_reloaded() -> None:
    hangups, reloads = _Hangups(), Reloads()
    hangups.follow(cast("Reloader", reloads))
    assert reloads.asked == []
