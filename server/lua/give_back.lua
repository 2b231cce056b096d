-- Return a leased job so that any worker takes it at once.
-- ARGV: 1 group, 2 entry, 3 id, 4 token, 5 error JSON ('' = not its fault), 6 max attempts, 7 lease_ms, 8 ttl_s, 9 channel.
local group, entry, id, token, error, max_attempts, lease_ms, ttl_s, channel =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]), ARGV[9]
local state = redis.call('HGET', JOB, 'state')
if not state or TERMINAL[state] or redis.call('HGET', JOB, 'token') ~= token then return 'fenced' end
redis.call('HINCRBY', JOB, 'token', 1) -- from here on the giver is fenced out
if redis.call('HGET', JOB, 'cancel') == '1' then
  conclude(id, 'canceled', ttl_s, channel)
  drop_entry(group, entry)
  return 'canceled'
end
if error == '' then
  redis.call('HINCRBY', JOB, 'attempt', -1) -- a drain is not a failed try
else
  redis.call('HSET', JOB, 'error', error)
  if tonumber(redis.call('HGET', JOB, 'attempt')) >= max_attempts then
    bury(id, error)
    conclude(id, 'failed', ttl_s, channel)
    drop_entry(group, entry)
    return 'failed'
  end
end
move(JOB, 'queued')
redis.call('HSET', JOB, 'step', 0)
-- Parked with a consumer that never reads, already as idle as a lapsed lease.
redis.call('XCLAIM', STREAM, group, 'returned', 0, entry, 'IDLE', lease_ms, 'JUSTID')
return 'queued'
