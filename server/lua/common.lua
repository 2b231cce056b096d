-- Shared by every script: prepended at load. Redis 7.0 commands only.
-- KEYS are always: 1 stream, 2 counters, 3 dead-letter stream, 4 job hash, 5 tombstone (where a script needs them).
local STREAM, COUNTERS, DEAD, JOB, TOMB = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local TERMINAL = {succeeded = true, failed = true, canceled = true}
local TOMBSTONE_EXTRA_S = 86400
local DEAD_KEPT = 10000 -- dead letters are for people to read; for ever would be a leak

local function now()
  local t = redis.call('TIME')
  return string.format('%d.%06d', t[1], t[2])
end

-- Every transition goes through here, so the counters always add up to `submitted`.
local function move(job, to)
  local from = redis.call('HGET', job, 'state')
  if from == to then return end
  redis.call('HINCRBY', COUNTERS, 'state:' .. from, -1)
  redis.call('HINCRBY', COUNTERS, 'state:' .. to, 1)
  redis.call('HSET', job, 'state', to)
end

-- Into a terminal state: the record and its tombstone get their time to live, and waiters are woken.
local function conclude(id, state, ttl_s, channel)
  local at = now()
  move(JOB, state)
  redis.call('HSET', JOB, 'completed_at', at, 'expires_at', string.format('%.6f', tonumber(at) + ttl_s))
  redis.call('EXPIRE', JOB, ttl_s)
  redis.call('SET', TOMB, state, 'EX', ttl_s + TOMBSTONE_EXTRA_S)
  redis.call('PUBLISH', channel, id)
end

-- 7.0 has no XACKDEL. Only ever called for a delivered entry: deleting an undelivered one breaks the group's lag.
-- True the first time.
local function drop_entry(group, entry)
  local acknowledged = redis.call('XACK', STREAM, group, entry)
  redis.call('XDEL', STREAM, entry)
  return acknowledged == 1
end

local function bury(id, error)
  redis.call('HINCRBY', COUNTERS, 'dead_lettered', 1)
  redis.call('XADD', DEAD, 'MAXLEN', '~', DEAD_KEPT, '*', 'id', id, 'error', error, 'input', redis.call('HGET', JOB, 'input'))
end
