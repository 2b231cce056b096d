"""Python clients: FluidClient and its asyncio twin, with the same methods, results and errors."""

from server.client.aio import AsyncFluidClient
from server.client.results import GeneratedImage, JobEvent, Preview
from server.client.sync import FluidClient

__all__ = ["AsyncFluidClient", "FluidClient", "GeneratedImage", "JobEvent", "Preview"]
