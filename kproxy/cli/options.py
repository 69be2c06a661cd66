"""Make the command-line options of a command from the declared settings.

Options have no defaults of their own: the defaults are those of the configuration, and `--help` prints them.
"""

import typing
from pathlib import Path
from typing import Any

import click

from kproxy.cli.params import (
    Decorator,
    OneOf,
    OptionalPath,
    boolean,
    flag,
    several,
    shorthand_number,
    together,
)
from kproxy.config.codec import empty_is_default, split_annotation
from kproxy.config.declarations import Declaration, every_declaration
from kproxy.config.settings import Group, Scope
from kproxy.config.values import Check, PathOf, Reader


def setting_options(scope: Scope) -> Decorator:
    """The flags of this scope and of those before it; deprecated and ignored ones last."""
    described: dict[str, Declaration] = {}
    for each in every_declaration():
        if each.setting.flag and each.setting.scope <= scope:
            described.setdefault(each.setting.flag, each)
    ordered = sorted(
        described.values(), key=lambda each: (each.group is Group.IGNORED, bool(each.setting.replaced_by))
    )
    return together(*map(_option, ordered))


def _option(declared: Declaration) -> Decorator:
    setting = declared.setting
    names = [f"--{setting.flag}", *([f"-{setting.short}"] if setting.short else [])]
    bare, _ = split_annotation(declared.annotation)
    default = declared.default_text if setting.effect and declared.default is not False else ""
    options: dict[str, Any] = {
        "help": setting.help + (f"  [default: {default}]" if default else ""),
        "group": declared.group,
        "has_variable": not setting.replaced_by,
        "metavar": setting.metavar or None,
    }
    if bare is bool:
        return boolean(*names, **options)
    if typing.get_origin(bare) is not None:
        return several(*names, **options)
    return flag(*names, **(options | _value(declared, bare)))


def _value(declared: Declaration, bare: Any) -> dict[str, Any]:
    """The arguments by which click reads the value, and its name in `--help`."""
    setting = declared.setting
    reader: Reader | None = declared.first(Reader)
    check: Check | None = declared.first(Check)
    place: PathOf | None = declared.first(PathOf)
    if setting.short:
        return {"type": shorthand_number}
    if place is not None:
        return {"type": OptionalPath(file_okay=not place.directory, dir_okay=place.directory, path_type=Path)}
    if bare is int:
        return {"type": click.INT, "metavar": setting.metavar or "N"}
    if reader is not None:
        return {
            "type": click.FLOAT if reader.numeric else click.STRING,
            "metavar": setting.metavar or reader.metavar,
        }
    if check is not None and check.words and not setting.metavar:
        words = [word for word in check.words if word]
        return {"type": OneOf(words) if empty_is_default(declared.annotation) else click.Choice(words)}
    return {}
