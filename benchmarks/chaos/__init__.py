"""Chaos test: kill, freeze and pause processes at random under load, then audit every job.

storm     one run: start, load and faults, calm, audit
cast      the processes under test: Valkey, gateways, workers
redis_pair, proxy, clock, disk   their surroundings, which fail too
crowd     the clients
primary   another run: behind Sentinel, the primary is killed and its disk thrown away
faults    the fault injection
ledger    what each client requested and observed, and the verdict
audit     reads all jobs and images at the end
redelivery  time until a dead worker's job runs again
report    figures and gates
"""
