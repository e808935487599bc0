"""Data sets: raw files → tensors, cached. One data set a file; each imports on its own."""
