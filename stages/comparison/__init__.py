"""Compare predictions of two runs, question by question."""
