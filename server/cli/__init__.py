"""The fluid command, one file per command; main parses."""
