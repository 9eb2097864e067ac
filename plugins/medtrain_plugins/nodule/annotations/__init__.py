"""Annotated nodules: the tables of LUNA16, the XML of LIDC-IDRI, measured properties, and the triage score."""
