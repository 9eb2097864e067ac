"""Import of published weights: whole models, and pretrained parts."""
