"""Loss of the primary behind Sentinel, under load: its process is killed and its disk thrown away, again and again.

sentinels   three nodes and three Sentinels
losses      one run: load, losses, calm, audit
"""
