"""Training: recipe, run, loop, train; trainer holds what all trainers share."""
