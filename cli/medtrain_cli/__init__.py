"""The command line of medtrain; it talks to the core's public API only."""
