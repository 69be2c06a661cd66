"""Errors of bpf(2) by what the caller has to do, and with what would help."""

import errno
import platform

import pytest

from kproxy.kernel.bpf import syscall
from kproxy.kernel.bpf.syscall import Buffer, Command, call, failure
from kproxy.kernel.bpf.types import BpfError, BpfFailure


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (errno.EPERM, BpfFailure.MISSING, "needs CAP_BPF and CAP_NET_ADMIN"),
        (errno.ENOSYS, BpfFailure.MISSING, "needs a kernel with CONFIG_BPF_SYSCALL"),
        (errno.EROFS, BpfFailure.MISSING, "mounted read-only"),
        (syscall.NOT_SUPPORTED, BpfFailure.MISSING, "not supported"),
        (errno.E2BIG, BpfFailure.FULL, "too long"),
        (errno.ENOMEM, BpfFailure.INTERRUPTED, "Cannot allocate memory"),
        (errno.EMFILE, BpfFailure.INTERRUPTED, "Too many open files"),
        (errno.ENOENT, BpfFailure.INTERRUPTED, "No such file"),
        (errno.ENOLINK, BpfFailure.INTERRUPTED, "Link has been severed"),
        (errno.EINVAL, BpfFailure.REFUSED, "Invalid argument"),
    ],
    ids=lambda each: errno.errorcode.get(each) if isinstance(each, int) else None,
)
def test_an_errno_has_a_kind_and_a_text(code: int, kind: BpfFailure, text: str) -> None:
    error = failure(code, "map slots4 of 5 elements")
    assert (error.kind, error.code) == (kind, code)
    assert error.message.startswith("map slots4 of 5 elements: ")
    assert text in error.message


def test_a_kernel_that_is_too_old_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "5.4.0-150-generic")
    error = failure(errno.EINVAL, "program getpeername4")
    assert error.kind is BpfFailure.MISSING
    assert error.message == "program getpeername4: Linux 5.4.0-150-generic is too old, 5.8 is needed"
    assert failure(errno.ENOMEM, "map").kind is BpfFailure.INTERRUPTED


def test_a_machine_without_a_known_number_of_the_call_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(BpfError, match="s390x") as caught:
        call(Command.MAP_CREATE, Buffer(64), 64)
    assert caught.value.kind is BpfFailure.MISSING
