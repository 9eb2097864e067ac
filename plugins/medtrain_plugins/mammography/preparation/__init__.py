"""From DICOM archives to prepared images: sources, headers, pixels, and the command that writes them."""
