"""Images as bytes: codec writes files, uploads reads them, compositing edits, recipe says how one was made."""
