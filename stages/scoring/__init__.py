"""What a number means: answers, tables, statistics."""
