"""Model cards: the licence they carry, templates, the card of a checkpoint."""
