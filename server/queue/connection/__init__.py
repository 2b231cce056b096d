"""Connections to Redis that find the new primary after a failover, and notice a peer that fell silent."""
