"""Objects that Python users hand over, and how a run directory gives them back."""
