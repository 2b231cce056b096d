-- End a job, once. ARGV: 1 id, 2 token, 3 state, 4 outputs, 5 error, 6 metrics, 7 ttl_s, 8 steps, 9 result_ttl_s,
-- then pairs of image index and file: those that were not stored before. One round trip and one sync less than apart.
local id, token, state, outputs, error, metrics, ttl_s, steps =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local f = read(id, 'state', 'token', 'cancel', 'error')
if not f[1] or f[2] ~= token then
  redis.call('HINCRBY', COUNTERS, 'fenced', 1)
  return 'fenced'
end
if TERMINAL[f[1]] then return f[1] end -- our own finish, repeated after a lost reply
if f[3] == '1' then
  -- The caller was told that the job is being canceled, so that is how it ends.
  state, outputs, error = 'canceled', '', f[4] or ''
end
redis.call('HSET', key('job', id), 'outputs', outputs, 'error', error, 'metrics', metrics)
if state == 'succeeded' then
  redis.call('HSET', key('job', id), 'step', steps)
  for a = 10, #ARGV, 2 do redis.call('SET', key('result', id, token, ARGV[a]), ARGV[a + 1], 'EX', ARGV[9]) end
end
if state == 'failed' then bury(id, error) end
conclude(id, state, ttl_s)
return state
