"""From DICOM archives to prepared images."""
