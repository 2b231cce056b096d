"""ASGI middleware, outermost first: request_context, cors, errors, auth, body_limit. slow_clients is below them all."""
