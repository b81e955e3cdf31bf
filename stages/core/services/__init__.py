"""Services outside of this machine: the Hugging Face hub, Weights & Biases, and the secrets they
need.
"""
