"""Retraining on new data: validate, run, judge, decide."""
