"""The Dockerfile names what the tree has. The image itself is not built in tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_what_the_image_is_built_from_exists_and_is_sent_to_the_builder() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    assert "kproxy" in sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    ignored, *admitted = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    assert sources == {line[1:] for line in admitted if line.startswith("!")}
