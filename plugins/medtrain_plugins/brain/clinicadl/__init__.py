"""Import of ClinicaDL runs: their files, settings, networks and weights."""
