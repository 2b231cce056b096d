"""What settings of the service cost, each against the service without it.

storage      images and uploads outside of Redis (FLUID_RESULTS)
tracing      traces (FLUID_TRACES_URL)
s3_server    moto's server, also for the tests
"""
