"""The detector: networks, heads, losses."""
