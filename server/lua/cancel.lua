-- Cancel by id, safe to repeat. ARGV: 1 id, 2 ttl_s, 3 channel. Returns the state after the call.
local id, ttl_s, channel = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local state = redis.call('HGET', JOB, 'state')
if not state then return 'unknown' end
if TERMINAL[state] then return state end
if state == 'queued' then
  -- The entry stays: deleting an undelivered one breaks the group's lag. It is skipped when read.
  conclude(id, 'canceled', ttl_s, channel)
  return 'canceled'
end
redis.call('HSET', JOB, 'cancel', 1)
return state
