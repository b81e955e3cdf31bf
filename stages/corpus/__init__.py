"""What the data is: records, archives, images, splits, and the embedded sample."""
