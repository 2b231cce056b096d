"""The seam between worker and model: protocol, the thread it runs on, its loader, and a fake."""
