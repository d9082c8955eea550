"""Fine-tuning: scenes of an archive become a better model, and proof of it."""
