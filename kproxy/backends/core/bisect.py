"""Find the items at fault in a refused batch: the kernel applies a batch as a whole or not at all."""

from collections.abc import Callable, Sequence
from typing import TypeVar

_Refusal = TypeVar("_Refusal", bound=Exception)


class StaleStateError(Exception):
    """The kernel refused a batch after others wrote: the applied state is stale and must be read again."""


def bisect_refused(
    items: Sequence[str],
    attempt: Callable[[Sequence[str]], None],
    give_up: Callable[[str, _Refusal], None],
    *,
    refusal: type[_Refusal],
    classify_refusal: Callable[[_Refusal], None],
) -> None:
    """Run `attempt` on all items; while it raises `refusal`, on halves. Call `give_up` for each refused item.

    `classify_refusal` is called with each refusal first, and raises if the items are not at fault.
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
