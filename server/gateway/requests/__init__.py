"""From what a caller sent to a job without open questions: validation, content_negotiation, resolve."""
