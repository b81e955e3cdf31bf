"""Question records: readers of JSON and CSV, validation, text rules."""
