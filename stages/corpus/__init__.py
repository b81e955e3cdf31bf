"""Data of the pipeline: records, archives, images, splits, and the embedded sample."""
