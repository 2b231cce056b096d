"""What the service costs beside the engine: latency that it adds, throughput by workers, the price of a backlog."""
