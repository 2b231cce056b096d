"""Load test of the service with the fake engine: added latency, throughput by workers, cost of a backlog.

generator   an open-loop HTTP client
service     Valkey, a gateway and workers for one measurement
latency     latency that the service adds to an image
steps       the worker's own time per AR step
throughput  images per second by number of workers
backlog     cost of queue operations with a long queue
"""
