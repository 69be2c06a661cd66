"""Runs the demo from start to end and handles its failures."""

from pathlib import Path
from typing import Final

from kproxy_lab.demo import examples, interruption, offline, scenes
from kproxy_lab.demo.examples import Examples, UnusableExamplesError
from kproxy_lab.demo.interruption import Interrupted, Interruption
from kproxy_lab.demo.program import ProgramDiedError, ProgramSilentError
from kproxy_lab.demo.scenes import Expectations
from kproxy_lab.demo.screen import Screen
from kproxy_lab.demo.stage import Stage
from kproxy_lab.lab import AskError, NotSupportedError

BROKEN: Final = (NotSupportedError, ProgramDiedError, ProgramSilentError, UnusableExamplesError, AskError)


def run(directory: Path | None, variant: str | None, *, keep: bool = False) -> int:
    """Run the demo, or print why it cannot run here and show rules; return the exit status.

    0 when every expectation held, 1 when one did not or a part failed, 128 + n after signal n (with `keep`, a
    signal at the end is the normal end). Call it in the main thread. Raises UnusableExamplesError when there
    are no manifests.
    """
    place = examples.find(directory)
    screen, expectations = Screen(), Expectations()
    finished = False

    def work(stop: Interruption) -> None:
        nonlocal finished
        if reasons := offline.missing():  # which makes a namespace to find out
            offline.show_rules(reasons, place)
            return
        shown = examples.load(place)
        with Stage(stop) as stage:
            _show(screen, stage, shown, variant, expectations)
            finished = True
            if keep:
                scenes.stay(screen, stage)

    try:
        interruption.run(work)
    except Interrupted as stopped:
        screen.console.print()
        screen.say(f"{stopped}: everything is cleaned up.")
        if not (keep and finished):
            return 128 + stopped.number
    except BROKEN as error:
        screen.console.print()
        screen.wrong([str(error)])
        if isinstance(error, ProgramDiedError | ProgramSilentError):
            screen.say("The end of its log:")
            for line in error.tail:
                screen.verbatim(line, style="dim", indent=4)
        return 1
    return 1 if expectations.broken else 0


def _show(
    screen: Screen, stage: Stage, shown: Examples, variant: str | None, expectations: Expectations
) -> None:
    """Show all scenes. A request that fails because kproxy died raises ProgramDiedError, not AskError."""
    found = scenes.come_up(screen, stage, shown, variant)
    try:
        scenes.addresses(screen, stage, found, expectations)
        scenes.change(screen, stage, shown, expectations)
        scenes.rules(screen, stage)
        scenes.zero_trust(screen, stage, shown, expectations)
    except AskError:
        stage.program.check()
        raise
    stage.program.check()
    scenes.where_next(screen, shown)
    scenes.verdict(screen, expectations)
