"""The mean of two checkpoints' weights."""
