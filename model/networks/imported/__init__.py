"""Families whose weights are imported, not trained here.

nova                  text to image, random order over continuous tokens (BAAI)
"""
