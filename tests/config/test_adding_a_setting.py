"""A throw-away setting, declared in a copy of the package: flag, variable, field, reload, help, reference."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import kproxy

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OWN_HEAD = "---\napiVersion: kproxy.io/v1alpha1\nkind: KproxyConfiguration\n"

# product file | the line before | what is added
EDITS = [
    (
        "config/schema_sections.py",
        '    """`metrics` of kproxy\'s own document."""\n',
        (
            "    probe_interval: Annotated[\n"
            '        NotNegativeDuration, live("probe-interval", "Time between two probes.", NODE)\n'
            "    ] = 5.0\n"
        ),
    ),
    (
        "config/model.py",
        "    cleanup_on_exit: bool = _OWN.cleanup_on_exit\n",
        "    probe_interval: float = _OWN.metrics.probe_interval\n",
    ),
]
RELOAD = """
from kproxy.config.documents import read_documents
from kproxy.config.reload import changes_between
from kproxy.config.translate import proxy_config
old, new = (read_documents({head!r} + text)[0] for text in ("", {own!r} + "metrics: {{probeInterval: 7s}}"))
print(changes_between(old, new).applied, proxy_config(new, host="n").probe_interval)
"""


class Copy:
    """A copy of the package with the edits."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        package = Path(kproxy.__file__).parent
        shutil.copytree(package, directory / "kproxy", ignore=shutil.ignore_patterns("__pycache__"))
        for name, before, added in EDITS:
            file = directory / "kproxy" / name
            text = file.read_text()
            assert text.count(before) == 1, f"{name} has not one line {before!r}"
            file.write_text(text.replace(before, before + added))

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run Python; the exit status and the output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": str(self._directory), "COLUMNS": "80", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def resolved(self, *arguments: str, **environment: str) -> object:
        """The value that the file of --write-config-to has."""
        written = self._directory / "out.yaml"
        status, output = self.run(
            "-m", "kproxy", "run", "--write-config-to", str(written), *arguments, **environment
        )
        assert status == 0, output
        documents = {each["kind"]: each for each in yaml.safe_load_all(written.read_text())}
        return documents["KproxyConfiguration"]["metrics"]["probeInterval"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


def test_it_takes_at_most_three_product_files() -> None:
    reader = 1
    assert len({name for name, _, _ in EDITS}) + reader <= 3


def test_help_and_the_reference_describe_it(copy: Copy) -> None:
    _, text = copy.run("-m", "kproxy", "check", "--help")
    assert "--probe-interval DURATION Time between two probes. [default: 5s]" in " ".join(text.split())
    _, text = copy.run("-m", "kproxy", "render", "--help")
    assert "--probe-interval" not in text
    _, text = copy.run("-m", "kproxy.config.reference")
    row = "| `--probe-interval` | KproxyConfiguration `metrics.probeInterval` | `5s` | yes |"
    assert f"{row} Time between two probes. |" in text


def test_flag_variable_and_file_set_it(copy: Copy, tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + OWN_HEAD + "metrics: {probeInterval: 9s}\n")
    assert copy.resolved("--probe-interval=7s") == "7s"
    assert copy.resolved(KPROXY_PROBE_INTERVAL="8s") == "8s"
    assert copy.resolved(f"--config={file}") == "9s"
    assert copy.resolved(f"--config={file}", "--probe-interval=7s") == "7s"


def test_a_bad_value_is_named_by_where_it_came_from(copy: Copy, tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + OWN_HEAD + "metrics: {probeInterval: -1s}\n")
    wrong = '"-1s" is negative'
    for arguments, environment, name in (
        (("--probe-interval=-1s",), {}, "--probe-interval"),
        ((), {"KPROXY_PROBE_INTERVAL": "-1s"}, "KPROXY_PROBE_INTERVAL"),
        ((f"--config={file}",), {}, f"{file}: KproxyConfiguration metrics.probeInterval"),
    ):
        status, text = copy.run("-m", "kproxy", "run", *arguments, **environment)
        assert status == 1
        assert f"Error: {name}: {wrong}" in text


def test_a_reload_applies_it_and_it_reaches_what_kproxy_works_with(copy: Copy) -> None:
    status, text = copy.run("-c", RELOAD.format(head=HEAD, own=OWN_HEAD))
    assert status == 0, text
    assert text.strip() == "('KproxyConfiguration metrics.probeInterval',) 7.0"
