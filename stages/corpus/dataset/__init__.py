"""What training and evaluation need of a corpus: problem text, split files, stored images, paths."""
