-- Cancel by id, safe to repeat. args: id, ttl_s. Returns the state after the call.
local id = args.id
local f = read(id, 'state', 'model')
if not f[1] then return 'unknown' end
if TERMINAL[f[1]] or not intact(id) then return f[1] end
local lease_end = redis.call('ZSCORE', keys.leases_zset(f[2]), id)
-- Once the lease has expired, no worker is left to see the flag.
if f[1] == 'queued' or (lease_end and tonumber(lease_end) <= clock()) then
  redis.call('HINCRBY', keys.job_hash(id), 'token', 1)
  finish(id, 'canceled', args.ttl_s)
  return 'canceled'
end
redis.call('HSET', keys.job_hash(id), 'cancel_requested', 1)
redis.call('PUBLISH', keys.canceled_channel, id) -- its worker need not wait for the next renewal
return f[1]
