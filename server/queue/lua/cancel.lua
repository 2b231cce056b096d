-- Cancel by id, safe to repeat. ARGV: 1 id, 2 ttl_s. Returns the state after the call.
local id, ttl_s = ARGV[1], tonumber(ARGV[2])
local f = read(id, 'state', 'model')
if not f[1] then return 'unknown' end
if TERMINAL[f[1]] then return f[1] end
local held = redis.call('ZSCORE', key('leases', f[2]), id)
if f[1] == 'queued' or (held and tonumber(held) <= clock()) then -- nobody would see the flag of a lapsed lease
  redis.call('HINCRBY', key('job', id), 'token', 1)
  conclude(id, 'canceled', ttl_s)
  return 'canceled'
end
redis.call('HSET', key('job', id), 'cancel', 1)
redis.call('PUBLISH', key('cancels'), id) -- its worker need not wait for the next pulse
return f[1]
