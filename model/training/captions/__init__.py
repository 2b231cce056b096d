"""What the text encoder makes once of captions and of words: cached states, and hints at names near in meaning."""
