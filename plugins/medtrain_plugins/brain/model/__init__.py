"""Networks, losses, inference, prediction and saliency for brain images."""
