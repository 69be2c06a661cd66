"""Thin commands: each reads flags, calls one function and converts its errors into exit codes."""
