"""Training of clean and robust models."""
