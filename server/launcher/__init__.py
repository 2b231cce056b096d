"""Starts and stops processes: supervisor (fluid serve), embedded_valkey, subprocesses."""
