"""The JSON that callers send and get, and what OpenAPI says about it; read images, then jobs."""
