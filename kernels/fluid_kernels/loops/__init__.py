"""The diffusion head's sampling loop on each path: torch, or fused operations."""
