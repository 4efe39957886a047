"""Replay buffers in Zarr (versions 2 and 3), read from folders and zip files without trusting what they claim."""
