"""OpenAI's Files and Batches on top of the queue: record, runner, files."""
