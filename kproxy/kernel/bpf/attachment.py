"""The programs on the hooks of a cgroup: links that are made, updated, watched, and pinned.

A link that serves is never taken away to make another: its program is replaced in place.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from kproxy.kernel.bpf import links
from kproxy.kernel.bpf.layout import Layout
from kproxy.kernel.bpf.pins import open_pin, temporary, unpin
from kproxy.kernel.bpf.programs import HOOKS, program_info, program_name
from kproxy.kernel.bpf.types import BpfError, BpfFailure, Change, Problem


class Attachment:
    """The links of all programs of HOOKS to one cgroup; owns the descriptors of the links."""

    def __init__(self, cgroup: Path, layout: Layout) -> None:
        """Raises BpfError if there is no such directory."""
        self._cgroup = cgroup
        self._layout = layout
        self._links: dict[str, int] = {}
        self._superseded: list[int] = []
        try:
            self._cgroup_id = cgroup.stat().st_ino
        except OSError as error:
            raise BpfError(BpfFailure.MISSING, f"{cgroup}: {error.strerror}", error.errno or 0) from error

    def attach(self, programs: Mapping[str, int], before: Mapping[str, int]) -> None:
        """Put these programs, by their descriptors, on all hooks, and pin the links.

        Raises BpfError; then links are as before, if `before` has the programs that were attached.
        """
        created: list[str] = []
        updated: list[str] = []
        try:
            for name in HOOKS:
                self._find_half_pinned(name)
                found = self._usable(name)
                if found is None:
                    self._links[name] = links.create(programs[name], self._cgroup, HOOKS[name], name)
                    self._layout.forget(self._layout.link(name))
                    created.append(name)
                elif found.program != program_info(programs[name]).number:
                    links.update(self._links[name], programs[name], name)
                    updated.append(name)
                self._layout.ensure(self._links[name], self._layout.link(name))
        except BpfError:
            with contextlib.suppress(BpfError):
                self._restore(created, [(name, before[name]) for name in updated if name in before])
            raise
        self._end_superseded()

    def problems(self, programs: Mapping[str, int]) -> Iterator[Problem]:
        """Differences from what `attach` makes of these programs. Raises BpfError."""
        for name, hook in HOOKS.items():
            own: set[int] = set()
            found = self._usable(name) if name not in self._links else links.link_info(self._links[name])
            if found is None:
                yield Problem(f"link {name}", Change.MISSING, f"not attached to {self._cgroup}")
            else:
                own.add(found.program)
                yield from self._differences(name, found, programs)
            for number in links.hook_programs(self._cgroup, hook).programs:
                if number not in own:
                    detail = f"program {number} of others, {program_name(number) or 'without a name'}"
                    yield Problem(f"hook {name}", Change.UNEXPECTED, detail)

    def detach(self) -> None:
        """Take all programs off their hooks at once. Raises BpfError."""
        for name in HOOKS:
            self._find_half_pinned(name)
            if self._usable(name) is not None:
                links.detach(self._links[name], name)
        self._end_superseded()

    def close(self) -> None:
        """Close the links; pinned ones serve on."""
        for descriptor in (*self._links.values(), *self._superseded):
            os.close(descriptor)
        self._links, self._superseded = {}, []

    def _differences(
        self, name: str, found: links.LinkInfo, programs: Mapping[str, int]
    ) -> Iterator[Problem]:
        if not found.cgroup:
            yield Problem(f"link {name}", Change.MISSING, f"detached from {self._cgroup}")
        elif found.cgroup != self._cgroup_id:
            yield Problem(f"link {name}", Change.MODIFIED, f"at the cgroup with the id {found.cgroup}")
        elif name in programs and found.program != program_info(programs[name]).number:
            yield Problem(f"link {name}", Change.MODIFIED, f"has another program: {found.program}")

    def _usable(self, name: str) -> links.LinkInfo | None:
        """The link of a program, perhaps pinned only, if it is attached to the cgroup. Raises BpfError."""
        if name not in self._links:
            path = self._layout.link(name)
            self._layout.remember(path)
            try:
                self._links[name] = open_pin(path)
            except BpfError as error:
                self._layout.forget(path)
                if error.kind in {BpfFailure.INTERRUPTED, BpfFailure.REFUSED}:
                    return None
                raise
        found = None
        with contextlib.suppress(BpfError):
            found = links.link_info(self._links[name])
        if found is None or found.cgroup != self._cgroup_id or found.hook != HOOKS[name]:
            self._superseded.append(self._links.pop(name))
            self._layout.forget(self._layout.link(name))
            return None
        return found

    def _find_half_pinned(self, name: str) -> None:
        """A process that was killed may have left a link under the name that a pin has at first."""
        with contextlib.suppress(BpfError):
            self._superseded.append(open_pin(temporary(self._layout.link(name))))

    def _restore(self, created: list[str], updated: list[tuple[str, int]]) -> None:
        for name, program in updated:
            links.update(self._links[name], program, name)
        for name in created:
            link = self._links.pop(name)
            self._layout.forget(self._layout.link(name))
            links.detach(link, name)
            os.close(link)
            unpin(self._layout.link(name))

    def _end_superseded(self) -> None:
        """Detach links that others have replaced: half-pinned ones, and those at another cgroup."""
        for link in self._superseded:
            with contextlib.suppress(BpfError):
                links.detach(link, "a former program")
            os.close(link)
        self._superseded = []
