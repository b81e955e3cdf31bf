"""Train and test splits without leakage, and the tests of a corpus."""
