"""Profiles: settings of another scale, and whether this machine can run them."""
