"""The commands for sign data: prepare and synth."""
