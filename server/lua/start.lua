-- Turn a delivered entry into a lease. ARGV: 1 group, 2 entry, 3 id, 4 max attempts, 5 ttl_s, 6 channel, 7 call.
-- Safe to repeat: `call` names one call, so that a repetition after a lost reply does not count as another try.
local group, entry, id, max_attempts, ttl_s, channel, call =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local state = redis.call('HGET', JOB, 'state')
if not state then
  -- Canceled while it waited, and its record has expired since. Nobody had taken it before: see cancel.lua.
  if drop_entry(group, entry) then redis.call('HINCRBY', COUNTERS, 'taken', 1) end
  return {'gone'}
end

local function lease()
  local f = redis.call('HMGET', JOB, 'token', 'attempt', 'input', 'created_at', 'started_at', 'error')
  return {'ok', f[1], f[2], f[3], f[4], f[5], f[6] or ''}
end

if redis.call('HGET', JOB, 'call') == call then return lease() end
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
redis.call('HINCRBY', JOB, 'token', 1)
move(JOB, 'starting')
redis.call('HSET', JOB, 'started_at', now(), 'step', 0, 'call', call)
return lease()
