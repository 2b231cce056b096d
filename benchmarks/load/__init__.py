"""Load test of the service with the fake engine: added latency, throughput, cost of a backlog, a noisy neighbour.

generator   an open-loop HTTP client
service     Valkey, a gateway and workers for one measurement
latency     latency that the service adds to an image
steps       the worker's own time per AR step
throughput  images per second by number of workers
backlog     cost of queue operations with a long queue
neighbour   latency of one API key beside another that uses all its limits
noise       that other one
"""
