"""`python -m model.training`."""

from model.training.train import main

main()
