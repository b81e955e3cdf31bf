"""Cost of the whole matrix on a GPU: training steps, evaluation, and a real learning run."""
