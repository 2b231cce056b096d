"""The HTTP gateway: `app` assembles it, `dependencies` and `lifespan` hold what requests share; then see `routes`."""
