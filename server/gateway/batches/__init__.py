"""OpenAI's Files and Batches on top of the queue: `store` serves the routes, `runner` works in the background."""
