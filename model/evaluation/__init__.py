"""Scores of a checkpoint: evaluate, evaluate_scenes, the detector, and the model card."""
