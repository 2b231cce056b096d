"""The HTTP process: app builds it, dependencies and lifespan say what routes share; then routes/."""
