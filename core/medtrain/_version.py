"""The version of medtrain."""

__version__ = "0.1.0"
