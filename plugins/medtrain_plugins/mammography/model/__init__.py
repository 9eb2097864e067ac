"""Networks, layers and losses of the risk models."""
