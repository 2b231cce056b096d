-- End a job, once. ARGV: 1 group, 2 entry, 3 id, 4 token, 5 state, 6 outputs, 7 error, 8 metrics, 9 ttl_s, 10 channel.
local group, entry, id, token, state, outputs, error, metrics, ttl_s, channel =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10]
local old = redis.call('HGET', JOB, 'state')
if not old or redis.call('HGET', JOB, 'token') ~= token then
  redis.call('HINCRBY', COUNTERS, 'fenced', 1)
  return 'fenced'
end
if TERMINAL[old] then return old end -- our own finish, repeated after a lost reply
if redis.call('HGET', JOB, 'cancel') == '1' then
  -- The caller was told that the job is being canceled, so that is how it ends.
  state, outputs, error = 'canceled', '', ''
end
redis.call('HSET', JOB, 'outputs', outputs, 'error', error, 'metrics', metrics)
if state == 'succeeded' then
  redis.call('HSET', JOB, 'step', ARGV[11])
end
if state == 'failed' then bury(id, error) end
conclude(id, state, ttl_s, channel)
drop_entry(group, entry)
return state
