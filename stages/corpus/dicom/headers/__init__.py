"""Typed, name-free access to DICOM headers, without pixel code."""
