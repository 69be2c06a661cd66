"""The ranges that ServiceCIDRs give: a CIDR that cannot be read costs itself, not its object's other one."""

from collections.abc import Iterable

from kproxy.addresses import parse_cidr
from kproxy.state.problems import Problem, show
from kproxy.state.wire import ServiceCIDR


def ranges_of(objects: Iterable[ServiceCIDR]) -> tuple[str, ...]:
    """Every readable range in canonical form, sorted, without duplicates."""
    found: set[str] = set()
    for obj in objects:
        for cidr in _cidrs(obj):
            try:
                found.add(parse_cidr(cidr)[1])
            except ValueError:
                continue
    return tuple(sorted(found))


def problems_of(obj: object) -> tuple[Problem, ...]:
    """What is wrong with the CIDRs of a ServiceCIDR; nothing is with an object of another kind."""
    if not isinstance(obj, ServiceCIDR):
        return ()
    found = []
    for number, cidr in enumerate(_cidrs(obj)):
        try:
            parse_cidr(cidr)
        except ValueError as error:
            found.append(Problem(f"ServiceCIDR {obj.key}", f"spec.cidrs[{number}]", show(cidr), str(error)))
    return tuple(found)


def _cidrs(obj: ServiceCIDR) -> tuple[str, ...]:
    return obj.spec.cidrs or () if obj.spec is not None else ()
