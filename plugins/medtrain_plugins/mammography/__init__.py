"""The family room of the breast-cancer risk models: what more than one of them needs."""
