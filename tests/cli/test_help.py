"""What --help shows: every command, and the options of a command under the headings of their groups."""

from importlib.metadata import EntryPoint

import click
import pytest
from click.testing import CliRunner

from kproxy.cli import main as module
from kproxy.cli.main import COMMANDS, main
from kproxy.config.settings import Group


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, prog_name="kproxy", env={"COLUMNS": "200"})
    return result.exit_code, result.output


def sections(text: str) -> dict[str, list[str]]:
    """The first words of the entries under each heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line[:-1]
        elif heading and line.startswith("  ") and line[2] != " ":
            found.setdefault(heading, []).append(line.split()[0].rstrip(","))
    return found


def test_each_option_is_under_the_heading_of_its_group() -> None:
    status, text = run("run", "--help")
    assert status == 0
    found = sections(text)
    assert {group.value for group in Group} <= {*found, "Options"}
    assert next(iter(found)) == "Options"
    assert "-h" in found["Options"]
    assert sum("--proxy-mode" in options for options in found.values()) == 1
    assert "--proxy-mode" not in found["Options"]
    assert all(found.values())


def test_a_command_without_settings_has_one_heading() -> None:
    assert sections(run("cleanup", "--help")[1]).keys() == {"Options"}


def test_every_command_is_listed_and_each_has_a_help() -> None:
    listed = sections(run("--help")[1])["Commands"]
    assert set(COMMANDS) <= set(listed)
    assert listed == sorted(listed)
    for name in COMMANDS:
        status, text = run(name, "--help")
        assert status == 0
        assert f"Usage: kproxy {name}" in text


def test_a_command_of_another_distribution_is_one_of_kproxys(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.option("--some-size", type=int, default=0)
    def other(some_size: int) -> None:
        """Do something else."""
        click.echo(f"size {some_size}")

    class Found(EntryPoint):
        def load(self) -> object:
            return other

    entry = Found(name="another", value="x:y", group=module.EXTENSIONS)
    monkeypatch.setattr(module, "_extensions", lambda: {"another": entry})
    assert "another" in sections(run("--help")[1])["Commands"]
    assert run("another", "--some-size", "3") == (0, "size 3\n")
    result = CliRunner().invoke(main, ["another"], prog_name="kproxy", env={"KPROXY_SOME_SIZE": "4"})
    assert result.output == "size 4\n"


def test_an_unknown_command_is_a_bad_flag() -> None:
    status, text = run("nonsense")
    assert status == 1
    assert "No such command 'nonsense'" in text
