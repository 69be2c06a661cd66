"""Python imports this when it starts: a kproxy that a test of `make mutants` starts measures its own lines.

The first run of `make mutants` puts this directory on PYTHONPATH. The lines of the process count for the test
that started it. Other processes, and those of other runs, pay for one look at the environment.
"""

import os
import sys

if "KPROXY_MUTANTS_TEST" in os.environ and sys.orig_argv[1:3] == ["-m", "kproxy"]:
    import atexit
    from pathlib import Path

    import coverage

    _measured = coverage.Coverage(
        data_file=str(Path(os.environ["KPROXY_MUTANTS_RECORD"]) / ".coverage"),
        data_suffix=True,
        source=["kproxy"],
        config_file=False,
        context=os.environ["KPROXY_MUTANTS_TEST"],
    )
    _measured.start()

    def _end() -> None:
        _measured.stop()
        _measured.save()

    atexit.register(_end)
