"""Answer extraction and completion formats, shared by rewards and scoring."""
