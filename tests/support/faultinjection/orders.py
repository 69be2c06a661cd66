"""How a program in a room is told what is to go wrong, and tells what did: through files in one directory."""

from collections import Counter
from pathlib import Path
from types import ModuleType


def customise(directory: Path, module: ModuleType) -> None:
    """Have a Python program whose PYTHONPATH is the directory begin with a module's text (see `site`)."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(source(module), encoding="utf-8")


def source(module: ModuleType) -> str:
    """The text of a module that is to run elsewhere."""
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def replace(path: Path, text: str) -> None:
    """Write a file as a whole: who reads it has the old text or the new."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


def tally(directory: Path) -> Counter[str]:
    """How often something went wrong, by what it was: the second word of each line of the journal."""
    journal = directory / "done"
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return Counter(line.split()[1] for line in lines)
