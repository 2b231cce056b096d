"""The diffusion head's sampling loop on each path: torch, fused operations, one persistent kernel."""
