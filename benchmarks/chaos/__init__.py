"""Processes killed at random while requests come in, and the books checked afterwards."""
