"""Cards and pages that describe a dataset to people and to the hub."""
