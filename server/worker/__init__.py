"""The worker process that generates images: main starts the loop, which takes, admits, steps and publishes."""
