"""What training and evaluation need of a corpus: problem texts, split files, images, paths."""
