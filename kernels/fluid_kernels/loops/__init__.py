"""The diffusion head's sampling loop in three forms; plan says how the persistent one shares the work."""
