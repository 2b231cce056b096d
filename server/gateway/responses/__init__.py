"""From a job to its HTTP response: JSON, an image file, or server-sent events, with headers."""
