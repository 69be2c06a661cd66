"""The named cases: objects, and changes of them, after each of which all contenders are compared."""

from tests.peer.cases import access, addresses, changes, conditions, kinds
from tests.peer.cases.words import Case

CASES: tuple[Case, ...] = (
    *kinds.CASES,
    *conditions.CASES,
    *access.CASES,
    *addresses.CASES,
    *changes.CASES,
)
