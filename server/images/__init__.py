"""Images as bytes: codec writes files, uploads reads them, compositing blends edits, recipe holds parameters."""
