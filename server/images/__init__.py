"""Images as bytes: codec writes files, uploads reads them, compositing edits, recipe holds the parameters of one."""
