"""How the suite runs: plugins of pytest that the root conftest registers, and the program behind `make test`.

`python -m tests.suite [ARGUMENT...]` runs pytest, runs the few tests that failed once more by themselves, and
returns 0 only if every test was run and passed.
"""
