"""Schemas of requests and responses, with their descriptions and examples in /openapi.json; start with images."""
