"""What every request passes, outermost first: request_context, errors, cors, body_limit, auth; slow_clients."""
