"""The table of raw completions that evaluation writes and scoring reads."""
