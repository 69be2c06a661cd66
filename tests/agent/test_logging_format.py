"""The log format: at the start, and when the file changes."""

import io
import json
from contextlib import redirect_stderr
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog
from click.testing import CliRunner

from kproxy import logs
from kproxy.agent.live_settings import LiveSettings
from kproxy.cli.main import main
from kproxy.config.model import ProxyConfig


@pytest.fixture(autouse=True)
def _unchanged() -> Any:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_another_format_in_the_file_takes_effect_without_a_restart() -> None:
    nothing: Any = SimpleNamespace(
        configure=lambda **_: None, follow=lambda _: None, reconfigure=lambda _: None
    )
    config = ProxyConfig(node_name="node-a")
    settings = LiveSettings(config, nothing, nothing, nothing, nothing)
    out = io.StringIO()
    with redirect_stderr(out):
        logs.configure(config.verbosity, config.logging_format)
        for form in ("json", "text"):
            settings.take(msgspec.structs.replace(config, logging_format=form))
            structlog.stdlib.get_logger("t").info("an_event", form=form)
    first, second = out.getvalue().splitlines()
    assert json.loads(first)["form"] == "json"
    assert second.endswith("level=info event=an_event form=text")


def test_the_flag_makes_every_line_json_and_is_not_said_to_do_nothing() -> None:
    given = ["run", "--logging-format=json", "--kube-api-qps=50", "--write-config-to=/dev/null"]
    result = CliRunner().invoke(main, given)
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    (told,) = [line for line in lines if line["event"] == "settings_without_effect"]
    assert "clientConnection.qps" in str(told)
    assert "logging.format" not in str(told)
