"""Connections to Redis: few, waited for, quick to notice a silent peer, and led to the new primary after a failover."""
