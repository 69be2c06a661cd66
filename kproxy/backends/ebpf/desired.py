"""The frontends that services want, and which of them may differ from the map.

Plans give a frontend to one service only; while a change of two services is taken over, both may want it.
"""

from kproxy.backends.ebpf.render import Frontend

_NOTHING: tuple[Frontend, ...] = ()


class DesiredFrontends:
    """All services' frontends; `touched` are the keys of those that may differ from the map."""

    def __init__(self) -> None:
        self.wanted: dict[bytes, Frontend] = {}
        self.touched: dict[bytes, None] = {}
        self._services: dict[str, tuple[Frontend, ...]] = {}
        self._owners: dict[bytes, str] = {}
        self._rivals: dict[bytes, dict[str, Frontend]] = {}
        """What each service wants of a frontend that more than one wants."""

    def put(self, service: str, new: tuple[Frontend, ...]) -> bool:
        """Replace a service's frontends; return whether they differ."""
        old = self._services.get(service, _NOTHING)
        if old == new:
            return False
        before, after = {each.key: each for each in old}, {each.key: each for each in new}
        for frontend in old:
            if after.get(frontend.key) != frontend:
                self._drop(service, frontend)
        for frontend in new:
            if before.get(frontend.key) != frontend:
                self._add(service, frontend)
        if new:
            self._services[service] = new
        else:
            del self._services[service]
        return True

    def owner(self, key: bytes) -> str | None:
        """The service that a frontend belongs to, or None."""
        return self._owners.get(key)

    def keys_of(self, service: str) -> list[bytes]:
        """The keys of the frontends that a service has."""
        return [each.key for each in self._services.get(service, _NOTHING)]

    def _add(self, service: str, frontend: Frontend) -> None:
        key = frontend.key
        self.touched[key] = None
        owner = self._owners.get(key)
        if owner is None:
            self._owners[key] = service
            self.wanted[key] = frontend
            return
        rivals = self._rivals.setdefault(key, {})
        if not rivals:
            rivals[owner] = self.wanted[key]
        rivals[service] = frontend
        self._settle(key, rivals)

    def _drop(self, service: str, frontend: Frontend) -> None:
        key = frontend.key
        self.touched[key] = None
        rivals = self._rivals.get(key)
        if rivals is None:
            del self._owners[key], self.wanted[key]
            return
        rivals.pop(service, None)
        self._settle(key, rivals)
        if len(rivals) == 1:
            del self._rivals[key]

    def _settle(self, key: bytes, rivals: dict[str, Frontend]) -> None:
        owner = min(rivals)
        self._owners[key], self.wanted[key] = owner, rivals[owner]
