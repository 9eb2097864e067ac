"""The commands for mammography: data, and the benchmark of the risk models."""
