"""The HTTP servers: health, metrics, status, health-check node ports."""
