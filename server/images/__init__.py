"""Images as bytes: codec writes files, uploads reads, compositing blends edits, recipe holds an image's parameters."""
