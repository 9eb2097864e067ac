"""Network, loss, prediction and export of the sign model."""
