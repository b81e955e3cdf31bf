"""External services: the Hugging Face hub, Weights & Biases, and their secrets."""
