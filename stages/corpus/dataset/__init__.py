"""What training and evaluation need of a corpus.

Problem text, split files, stored images, paths.
"""
