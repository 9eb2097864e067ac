"""Nodules as tables and XML describe them."""
