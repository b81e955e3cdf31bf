"""Comparison of the predictions of two runs, question by question (`med-r1 compare`)."""
