-- Cancel by id, safe to repeat. ARGV: 1 group, 2 id, 3 ttl_s, 4 channel. Returns the state after the call.
local group, id, ttl_s, channel = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local state = redis.call('HGET', JOB, 'state')
if not state then return 'unknown' end
if TERMINAL[state] then return state end
if state == 'queued' then
  conclude(id, 'canceled', ttl_s, channel)
  -- An undelivered entry stays: deleting it breaks the group's lag. It is skipped when read.
  if redis.call('HGET', JOB, 'taken') == '1' then drop_entry(group, redis.call('HGET', JOB, 'entry')) end
  return 'canceled'
end
redis.call('HSET', JOB, 'cancel', 1)
return state
