"""The settings: their types, defaults, flags, file, validation and reload."""
