"""The pages for people: the playground, and the API reference. Each is one self-contained file without a CDN."""
