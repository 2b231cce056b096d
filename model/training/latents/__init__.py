"""Your own images with captions: encoded once by an image tokenizer, then trained on."""
