"""The queue in Redis: read job_queue and lease_queue, then the scripts in lua/; keys declares every key."""
