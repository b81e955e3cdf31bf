"""The groups of params.yaml, each with what its keys mean. stages/core/params.py puts them together
and reads the file.
"""
