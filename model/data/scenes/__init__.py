"""Composed scenes: sprites, the facts a caption states, wordings, layouts. Torch-free; pictures are numpy."""
