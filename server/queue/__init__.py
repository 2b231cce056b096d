"""The queue in Redis: read job_queue, lease_queue, then the scripts in lua/; keys names every key."""
