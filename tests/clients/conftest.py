"""The service's fixtures, for clients that run for real."""

from tests.server.conftest import valkey

__all__ = ["valkey"]
