"""A finished checkpoint made ready to leave: what goes with it, what keeps it here, and the two
ways out.
"""
