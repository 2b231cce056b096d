"""`python -m model.training`: train a model."""

from model.training.train import main

main()
