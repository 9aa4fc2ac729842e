"""Files in and out: importing dumps into a storage, exporting series from it."""
