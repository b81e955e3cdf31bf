"""Profiles: what turns the committed settings into those of another scale, and whether this machine
can carry them.
"""
