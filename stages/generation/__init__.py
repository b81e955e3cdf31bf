"""Greedy generation for evaluation."""
