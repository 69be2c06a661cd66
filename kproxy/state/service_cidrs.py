"""The ranges that ServiceCIDRs give. A CIDR that cannot be read costs itself only."""

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


def problems_of(obj: ServiceCIDR) -> tuple[Problem, ...]:
    """Every CIDR of a ServiceCIDR that cannot be read, with the reason."""
    found = []
    for number, cidr in enumerate(_cidrs(obj)):
        try:
            parse_cidr(cidr)
        except ValueError as error:
            found.append(Problem(f"ServiceCIDR {obj.key}", f"spec.cidrs[{number}]", show(cidr), str(error)))
    return tuple(found)


def _cidrs(obj: ServiceCIDR) -> tuple[str, ...]:
    return obj.spec.cidrs or () if obj.spec is not None else ()
