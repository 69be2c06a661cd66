"""Every deliberate difference from kube-proxy is documented."""

import re
from pathlib import Path

from tests.peer.differences import DELIBERATE

ROOT = Path(__file__).parents[2]


def test_the_documentation_has_the_sections_that_deliberate_differences_name() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    headings = {
        heading
        for page in pages
        for heading in re.findall("^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {each.documented for each in DELIBERATE} - {""} <= headings
