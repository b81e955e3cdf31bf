"""Scoring of predictions: answers, accuracies, baselines and their statistics."""
