"""From a job to what its caller gets: synchronous, image_stream, images, jobs, headers, sse."""
