"""Device kernels and their plain-torch definitions; one operation per file."""
