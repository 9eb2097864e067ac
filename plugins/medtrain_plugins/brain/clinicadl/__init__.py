"""Runs and settings of ClinicaDL, taken over."""
