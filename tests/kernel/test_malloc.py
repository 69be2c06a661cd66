"""The allocator's settings are used where the C library has them, and missed by nothing where it has not."""

from __future__ import annotations

import ctypes

import pytest

from kproxy.kernel import malloc


def test_a_library_without_the_functions_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = iter([object(), object()])
    monkeypatch.setattr(ctypes, "CDLL", lambda _: next(loaded))
    malloc.use_one_arena()
    malloc.trim()
    assert next(loaded, None) is None


def test_the_functions_are_called_with_the_values_of_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    class Library:
        def mallopt(self, *arguments: object) -> None:
            calls.append(("mallopt", *arguments))

        def malloc_trim(self, *arguments: object) -> None:
            calls.append(("malloc_trim", *arguments))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    malloc.use_one_arena()
    malloc.trim()
    assert calls == [("mallopt", -8, 1), ("malloc_trim", 0)]
