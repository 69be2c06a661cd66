"""The hooks of base chains, in nft's words."""

HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
"""enum nf_inet_hooks of the kernel's include/uapi/linux/netfilter.h."""


def parse_hook(text: str) -> tuple[str, int, int]:
    """Return the type, hook number and priority of e.g. `type nat hook output priority -100;`.

    Raises ValueError for other words.
    """
    words = text.rstrip(";").split()
    if words[0::2] != ["type", "hook", "priority"] or words[3] not in HOOKS:
        raise ValueError(f"not understood: {text!r}")
    return words[1], HOOKS[words[3]], int(words[5])
