"""Read-only commands: diff, render, check."""
