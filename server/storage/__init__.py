"""Finished images outside Redis (FLUID_RESULTS): in a bucket of S3's kind, or in a folder that all hosts share."""
