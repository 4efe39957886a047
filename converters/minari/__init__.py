"""Minari datasets: what their metadata says, and their HDF5 and Arrow storages."""
