"""Open a zip, tar or folder safely; limits on paths and sizes; cache of hashes."""
