"""Question records: JSON and CSV readers, validation, text rules."""
