"""What identifies a person in a text about a patient: patterns by kind, and the search."""
