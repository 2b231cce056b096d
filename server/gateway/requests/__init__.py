"""From an HTTP request to a fully specified job: validation, content negotiation, defaults."""
