-- Accept a job. ARGV: 1 id, 2 input JSON, 3 kind, 4 queue limit.
-- Safe to repeat: a client library that retries after a lost reply does not enqueue twice.
local id, input, kind, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('EXISTS', JOB) == 1 then return {'ok', redis.call('HGET', JOB, 'created_at')} end
local queued = tonumber(redis.call('HGET', COUNTERS, 'state:queued') or '0')
if queued >= limit then return {'full', tostring(queued)} end
local at = now()
local sequence = redis.call('HINCRBY', COUNTERS, 'sequence', 1)
local entry = redis.call('XADD', STREAM, '*', 'id', id)
redis.call('HSET', JOB, 'id', id, 'state', 'queued', 'input', input, 'kind', kind, 'created_at', at,
  'sequence', sequence, 'attempt', 0, 'token', 0, 'entry', entry)
redis.call('HINCRBY', COUNTERS, 'submitted:' .. kind, 1)
redis.call('HINCRBY', COUNTERS, 'state:queued', 1)
return {'ok', at}
