"""Finished images and uploads outside Redis (FLUID_RESULTS): in a bucket of S3's kind, or in a shared folder."""
