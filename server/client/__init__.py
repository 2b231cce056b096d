"""Clients in Python: sync and aio, over one protocol; results and errors are the same for both."""

from server.client.aio import AsyncFluidClient
from server.client.results import GeneratedImage, JobEvent, Preview
from server.client.sync import FluidClient

__all__ = ["AsyncFluidClient", "FluidClient", "GeneratedImage", "JobEvent", "Preview"]
