"""The named cases: objects and their changes; all contenders are compared after each change."""

from tests.peer.cases import access, addresses, changes, conditions, kinds
from tests.peer.cases.words import Case

CASES: tuple[Case, ...] = (
    *kinds.CASES,
    *conditions.CASES,
    *access.CASES,
    *addresses.CASES,
    *changes.CASES,
)
