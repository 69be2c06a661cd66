"""The reference of all settings for docs/configuration.md: `python -m kproxy.config.reference` prints it."""

import sys
from collections.abc import Iterator

from kproxy.config.declarations import Declaration, declarations
from kproxy.config.process_flags import ProcessFlags
from kproxy.config.schema import KPROXY, KproxyConfiguration, KubeProxyConfiguration
from kproxy.config.settings import Group

BEGIN = "<!-- settings: begin; `python -m kproxy.config.reference` prints what is between the markers -->"
END = "<!-- settings: end -->"


def reference() -> str:
    """Markdown: a table for each group of settings."""
    rows: dict[Group, list[str]] = {group: [] for group in Group}
    for kind, prefix in (
        (ProcessFlags, None),
        (KubeProxyConfiguration, ""),
        (KproxyConfiguration, KPROXY[1]),
    ):
        for each in declarations(kind):
            rows[each.group].append(_row(each, prefix))
    return "\n".join(line for group in Group if rows[group] for line in _table(group, rows[group]))


def _table(group: Group, rows: list[str]) -> Iterator[str]:
    yield f"### {group.value}\n"
    yield "| flag | path in the file | default | live | meaning |"
    yield "|---|---|---|---|---|"
    yield from rows
    yield ""


def _row(declared: Declaration, prefix: str | None) -> str:
    """One setting; `prefix` is the kind of its document, None where no document has it."""
    setting = declared.setting
    flag = f"`--{setting.flag}`" if setting.flag else ""
    path = "" if prefix is None else f"{prefix} `{declared.path}`".strip()
    default = f"`{declared.default_text}`" if declared.default_text else ""
    live = "" if prefix is None or not setting.effect else "yes" if setting.live else "restart"
    meaning = setting.help.replace("|", "\\|")
    return f"| {flag} | {path} | {default} | {live} | {meaning} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
