"""Safe, in-place reading of zips, tars and folders; limits on names and sizes; hash cache."""
