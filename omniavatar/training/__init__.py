"""Training: procedural talking heads with a known truth, and the trainer over the same units as inference."""
