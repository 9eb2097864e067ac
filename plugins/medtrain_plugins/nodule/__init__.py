"""PIVOT: lung nodules in chest CT."""
