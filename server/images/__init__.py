"""Images as bytes: codec writes files, uploads reads, compositing blends edits, erased fills the gaps of their sources,
recipe holds an image's parameters."""
