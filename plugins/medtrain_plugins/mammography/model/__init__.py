"""Networks, layers, losses and prediction of the risk models."""
