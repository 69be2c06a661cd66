"""Find the items at fault in a refused batch: the kernel applies a batch as a whole or not at all."""

from collections.abc import Callable, Sequence
from typing import TypeVar

_Refusal = TypeVar("_Refusal", bound=Exception)


def bisect_refused(
    items: Sequence[str],
    attempt: Callable[[Sequence[str]], None],
    give_up: Callable[[str, _Refusal], None],
    *,
    refusal: type[_Refusal] | tuple[type[_Refusal], ...],
    classify_refusal: Callable[[_Refusal], None],
    left: Callable[[Sequence[str]], Sequence[str]] = lambda items: items,
) -> None:
    """Run `attempt` on all items; while it raises `refusal`, on halves. Call `give_up` for each refused item.

    `classify_refusal` is called with each refusal first, and raises if the items are not at fault. `left`
    returns which items are still to be attempted; it is asked before each attempt.
    """
    waiting = [items]
    while waiting:
        some = left(waiting.pop())
        if not some:
            continue
        try:
            attempt(some)
        except refusal as error:
            classify_refusal(error)
            if len(some) == 1:
                give_up(some[0], error)
                continue
            middle = len(some) // 2
            waiting += [some[middle:], some[:middle]]
