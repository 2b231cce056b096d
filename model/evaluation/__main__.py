"""`python -m model.evaluation`."""

from model.evaluation.evaluate import main

main()
