"""Find what is at fault in a refused write: the kernel takes a batch as a whole or not at all."""

from collections.abc import Callable, Sequence
from typing import TypeVar

_Refusal = TypeVar("_Refusal", bound=Exception)


class StaleStateError(Exception):
    """The kernel refused, but somebody else has written since it was observed: look again before judging."""


def bisect_refused(
    items: Sequence[str],
    attempt: Callable[[Sequence[str]], None],
    give_up: Callable[[str, _Refusal], None],
    *,
    refusal: type[_Refusal],
    classify_refusal: Callable[[_Refusal], None],
) -> None:
    """Run `attempt` on all items, or on halves while it is refused, and `give_up` each single one that is.

    `classify_refusal` sees each `refusal` first, and raises where it is not the items' fault.
    """
    if not items:
        return
    try:
        attempt(items)
    except refusal as error:
        classify_refusal(error)
        if len(items) == 1:
            give_up(items[0], error)
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            bisect_refused(half, attempt, give_up, refusal=refusal, classify_refusal=classify_refusal)
