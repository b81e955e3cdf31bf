"""Examples of the report: questions with their images, as asked and in their variants."""
