"""The policy that every checkpoint starts from: a folder, a hub id, or the embedded recipe."""
