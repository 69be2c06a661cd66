"""The ranges of ServiceCIDRs. An invalid CIDR does not affect the others."""

from collections.abc import Iterable

from kproxy.addresses import parse_cidr
from kproxy.state.problems import Problem, show
from kproxy.state.wire import ServiceCIDR


def ranges_of(objects: Iterable[ServiceCIDR]) -> tuple[str, ...]:
    """Every valid range in canonical form, sorted, without duplicates."""
    found: set[str] = set()
    for obj in objects:
        for cidr in _cidrs(obj):
            try:
                found.add(parse_cidr(cidr)[1])
            except ValueError:
                continue
    return tuple(sorted(found))


def problems_of(obj: ServiceCIDR) -> tuple[Problem, ...]:
    """Every invalid CIDR of a ServiceCIDR, with the reason."""
    found = []
    for number, cidr in enumerate(_cidrs(obj)):
        try:
            parse_cidr(cidr)
        except ValueError as error:
            found.append(Problem(f"ServiceCIDR {obj.key}", f"spec.cidrs[{number}]", show(cidr), str(error)))
    return tuple(found)


def _cidrs(obj: ServiceCIDR) -> tuple[str, ...]:
    return obj.spec.cidrs or () if obj.spec is not None else ()
