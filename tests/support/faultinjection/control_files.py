"""Files through which a test controls a program in a sandbox.

The test writes which fault to inject to the file `fault`; the program appends each injected fault to the file
`injected`. Both are in the directory of the wrapper that injects them.
"""

from collections import Counter
from pathlib import Path
from types import ModuleType


def customise(directory: Path, module: ModuleType) -> None:
    """Copy a module to `directory` as `sitecustomize.py`.

    A Python program whose PYTHONPATH is `directory` runs it before its own code (see the module `site`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(source(module), encoding="utf-8")


def source(module: ModuleType) -> str:
    """Return the source text of a module, to be copied and run by another program."""
    return Path(str(module.__file__)).read_text(encoding="utf-8")


def replace(path: Path, text: str) -> None:
    """Replace a file atomically."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


def tally(directory: Path) -> Counter[str]:
    """Return how often each fault was injected: the second word of each line of the file `injected`."""
    journal = directory / "injected"
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return Counter(line.split()[1] for line in lines)
