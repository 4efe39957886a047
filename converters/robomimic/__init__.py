"""robomimic HDF5 files, also those of Isaac Lab, LIBERO and MimicGen, and robosuite's raw demonstrations."""
