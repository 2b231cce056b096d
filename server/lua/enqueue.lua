-- Accept a job. ARGV: 1 id, 2 input JSON, 3 kind, 4 queue limit, 5 model, 6 class, 7 caller, 8 work, 9 deadline_ms ('' = none).
-- Safe to repeat: a client library that retries after a lost reply does not enqueue twice.
local id, input, kind, limit, model, class, caller, work, deadline_ms =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local job = key('job', id)
if redis.call('EXISTS', job) == 1 then return {'ok', redis.call('HGET', job, 'created_at')} end
local queued = tonumber(redis.call('HGET', COUNTERS, 'state:queued') or '0')
if queued >= limit then return {'full', tostring(queued)} end
local at = clock()
local sequence = redis.call('HINCRBY', COUNTERS, 'sequence', 1)
redis.call('HSET', job, 'id', id, 'state', 'queued', 'input', input, 'kind', kind, 'created_at', text(at),
  'sequence', sequence, 'attempt', 0, 'token', 0, 'model', model, 'class', class, 'caller', caller, 'work', work)
if deadline_ms ~= '' then
  redis.call('HSET', job, 'deadline', text(at + tonumber(deadline_ms) / 1000))
end
redis.call('HINCRBY', COUNTERS, 'submitted:' .. kind, 1)
redis.call('HINCRBY', COUNTERS, 'state:queued', 1)
join(id)
return {'ok', text(at)}
