"""Workers and devices: a plan for one host, and one model on several devices (tensor parallelism)."""
