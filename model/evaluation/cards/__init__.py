"""Publish a training run: its checkpoint and a model card with loss curve, scores, sheets, in one folder.

    python -m model.evaluation --suite scenes --checkpoint runs/atlas-128/checkpoint --out out/scenes
    python -m model.evaluation --suite breadth --checkpoint runs/atlas-128/checkpoint --out out/breadth
    python -m model.evaluation.cards --run runs/atlas-128 --evaluation out/scenes --evaluation out/breadth \\
        --sampling SAMPLING.json --description "A model of ..." --out model/checkpoints/atlas-128

Every figure of a card is read from the files of the run and of the evaluations; only the words are fixed. Weights and
scores must belong together.

publish    copies, merges, and chooses the card by the scores
facts      what every card states
emoji      text for single emoji
scenes     text for composed scenes
atlas      text for scenes and a breadth of single things
"""
