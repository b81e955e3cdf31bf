"""Make the embedded base model."""
