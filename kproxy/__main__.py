"""Let `python -m kproxy` be the `kproxy` command."""

from kproxy.cli.main import main

main(prog_name="kproxy")
