"""Stage 1: encoders trained on datasets. Empty in this release."""
