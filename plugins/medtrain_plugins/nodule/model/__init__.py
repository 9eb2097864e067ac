"""The detector: networks, heads, losses, hard-negative mining, and how they are built from the options."""
