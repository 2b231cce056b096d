"""Load test of the service with the fake engine: added latency, throughput, growth, a noisy neighbour.

generator   an open-loop HTTP client
service     Valkey, a gateway and workers for one measurement
latency     latency that the service adds to an image
processor   processor time per image
steps       the worker's own time per AR step
throughput  jobs per second without an engine, by number of workers
growth      images per second with steps of a fixed time, by number of workers
backlog     cost of queue operations inside Redis, up to a million waiting jobs
streams     memory of an open event stream
neighbour   latency of one API key beside another that uses all its limits
noise       that other one
"""
