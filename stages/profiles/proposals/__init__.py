"""Settings that fit a corpus: what `med-r1 use` proposes, why, and how it is printed."""
