-- Turn a delivered entry into a lease. ARGV: 1 group, 2 entry, 3 id, 4 max attempts, 5 ttl_s, 6 channel.
local group, entry, id, max_attempts, ttl_s, channel =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local state = redis.call('HGET', JOB, 'state')
if not state then
  drop_entry(group, entry)
  return {'gone'}
end
if redis.call('HGET', JOB, 'taken') ~= '1' then
  -- Counts first deliveries; a waiting job's place is its sequence less this number.
  redis.call('HSET', JOB, 'taken', 1)
  redis.call('HINCRBY', COUNTERS, 'taken', 1)
end
if TERMINAL[state] then -- canceled while it waited
  drop_entry(group, entry)
  return {'gone'}
end
if redis.call('HGET', JOB, 'cancel') == '1' then -- its worker died before it saw the flag
  conclude(id, 'canceled', ttl_s, channel)
  drop_entry(group, entry)
  return {'gone'}
end
local error = redis.call('HGET', JOB, 'error') or ''
local attempt = redis.call('HINCRBY', JOB, 'attempt', 1)
if state ~= 'queued' then redis.call('HINCRBY', COUNTERS, 'redeliveries', 1) end
if attempt > max_attempts then
  if error == '' then
    error = cjson.encode({code = 'worker_lost', message = 'The job was started ' .. max_attempts ..
      ' times and its worker died or fell silent each time.'})
    redis.call('HSET', JOB, 'error', error)
  end
  redis.call('HSET', JOB, 'attempt', max_attempts)
  redis.call('HINCRBY', JOB, 'token', 1)
  bury(id, error)
  conclude(id, 'failed', ttl_s, channel)
  drop_entry(group, entry)
  return {'gone'}
end
local token = redis.call('HINCRBY', JOB, 'token', 1)
move(JOB, 'starting')
local at = now()
redis.call('HSET', JOB, 'started_at', at, 'step', 0)
return {'ok', tostring(token), tostring(attempt), redis.call('HGET', JOB, 'input'),
  redis.call('HGET', JOB, 'created_at'), at, error}
