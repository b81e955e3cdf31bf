"""Training questions as data sets, and whether they can be trained on."""
