"""The commands for nodules: data, detect, froc, and the import of the PIVOT guide's configuration."""
