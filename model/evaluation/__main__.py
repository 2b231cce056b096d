"""`python -m model.evaluation`: score a checkpoint."""

from model.evaluation.evaluate import main

main()
