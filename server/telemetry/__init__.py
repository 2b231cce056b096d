"""Traces over OTLP, off by default, and logs as JSON. Neither holds a prompt."""
