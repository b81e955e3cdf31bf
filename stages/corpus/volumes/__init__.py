"""Volumes: NIfTI files, planes through slices, and the slices that a question is about."""
