"""Networks, losses and inference for brain images."""
