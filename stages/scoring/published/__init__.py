"""Published numbers: Med-R1's differences, headline numbers and splits, and third parties' results.

For display beside results on the same test questions alone. Each number has its source and a
caveat. The types differ from those of our own results, so that the two cannot be mixed in one table
unnoticed.
"""
