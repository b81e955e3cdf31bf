"""What the whole matrix costs on a GPU: steps, evaluation, and a true learning run."""
