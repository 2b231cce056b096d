"""What the token heads need in decoding: schedules of diffusion steps, sampling of discrete tokens."""
