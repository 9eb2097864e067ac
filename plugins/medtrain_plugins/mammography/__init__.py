"""The family room of the breast-cancer risk models: the cohorts, networks, weights and evaluation they share."""
