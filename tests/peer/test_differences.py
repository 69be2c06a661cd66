"""What packets may do otherwise than with kube-proxy is what users are told."""

import re
from pathlib import Path

from tests.peer.differences import DELIBERATE

README = Path(__file__).parents[2] / "README.md"


def test_readme_has_the_sections_that_deliberate_differences_name() -> None:
    headings = set(re.findall("^#+ (.+)$", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert {each.readme for each in DELIBERATE} - {""} <= headings
