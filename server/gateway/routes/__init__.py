"""The HTTP routes, one file per group; start with images and jobs."""
