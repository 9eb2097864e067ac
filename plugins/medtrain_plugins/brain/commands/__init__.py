"""The commands for brain images: data, saliency, and the import of ClinicaDL runs."""
