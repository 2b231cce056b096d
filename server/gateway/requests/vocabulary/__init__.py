"""What a model knows of a prompt's words, and what a caller should be told about the others."""
