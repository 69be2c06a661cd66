"""Find what is at fault in a refused write: the kernel takes a batch as a whole or not at all."""

from collections.abc import Callable, Sequence
from typing import TypeVar

_Refusal = TypeVar("_Refusal", bound=Exception)


class DoubtfulError(Exception):
    """The kernel refused, but somebody else has written since it was observed: look again before judging."""


def narrow_down(
    items: Sequence[str],
    attempt: Callable[[Sequence[str]], None],
    give_up: Callable[[str, _Refusal], None],
    *,
    refusal: type[_Refusal],
    believe: Callable[[_Refusal], None],
) -> None:
    """Run `attempt` on all items, or on halves while it is refused, and `give_up` each single one that is.

    `believe` sees each `refusal` first, and raises where it is not the items' fault.
    """
    if not items:
        return
    try:
        attempt(items)
    except refusal as error:
        believe(error)
        if len(items) == 1:
            give_up(items[0], error)
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            narrow_down(half, attempt, give_up, refusal=refusal, believe=believe)
