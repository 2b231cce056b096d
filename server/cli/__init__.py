"""The `fluid` command line: main parses, and each command is a module with `add_parser` and `run`."""
