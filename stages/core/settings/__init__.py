"""The groups of params.yaml and what their keys mean; stages/core/params.py reads the file."""
