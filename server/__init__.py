"""The service around the model: HTTP gateway, Redis queue, worker process, client and command line."""

__version__ = "0.1.0"
