-- Accept a job. ARGV: 1 id, 2 input JSON, 3 kind, 4 queue limit, 5 model, 6 class, 7 caller, 8 work, then '' where there
-- is none: 9 deadline_ms, 10 Idempotency-Key, 11 hash of what was asked, 12 ttl_s; 13 followed from the start (0|1),
-- 14 scope: who may list it; 15 webhook and 16 batch, '' without;
-- 17 how many jobs of this scope may wait or run, 0 for any number. Returns what became of it, the job's id and its creation time.
-- Safe to repeat: a client library that retries after a lost reply does not enqueue twice.
local id, input, kind, limit, model, class, caller, work, deadline_ms =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local again, hash, ttl_s, followed, scope = ARGV[10], ARGV[11], ARGV[12], ARGV[13] == '1', ARGV[14]
local IDEMPOTENT_FOR_S = 86400
if again ~= '' then id = redis.call('HGET', key('idem', scope, again), 'id') or id end
local job = key('job', id)
local known = read(id, 'hash', 'created_at', 'scope')
if not known[2] and again ~= '' then known[1] = redis.call('HGET', key('idem', scope, again), 'hash') end
if known[2] and known[3] ~= scope then return {'taken', id, ''} end
if known[1] and known[1] ~= hash then return {'differs', id, ''} end
if known[2] then return {'known', id, known[2]} end
if redis.call('EXISTS', key('tomb', id)) == 1 then return {'gone', id, ''} end
local queued = tonumber(redis.call('HGET', COUNTERS, 'state:queued') or '0')
if queued >= limit then return {'full', tostring(queued), ''} end
local open = tonumber(redis.call('HGET', key('open'), scope) or '0')
if tonumber(ARGV[17]) > 0 and open >= tonumber(ARGV[17]) then return {'busy', tostring(open), ''} end
local at = clock()
local sequence = redis.call('HINCRBY', COUNTERS, 'sequence', 1)
redis.call('HSET', job, 'id', id, 'state', 'queued', 'input', input, 'kind', kind, 'created_at', text(at),
  'sequence', sequence, 'attempt', 0, 'token', 0, 'model', model, 'class', class, 'caller', caller, 'work', work,
  'hash', hash, 'scope', scope)
if deadline_ms ~= '' then
  redis.call('HSET', job, 'deadline', text(at + tonumber(deadline_ms) / 1000))
end
for field, value in pairs({webhook = ARGV[15], batch = ARGV[16]}) do
  if value ~= '' then redis.call('HSET', job, field, value) end
end
if ttl_s ~= '' then redis.call('HSET', job, 'ttl', ttl_s) end
if again ~= '' then
  redis.call('HSET', key('idem', scope, again), 'id', id, 'hash', hash)
  redis.call('EXPIRE', key('idem', scope, again), IDEMPOTENT_FOR_S)
end
if followed then redis.call('XADD', key('events', id), '*', 'type', 'status', 'value', 'queued') end
redis.call('PERSIST', key('input', id)) -- the picture that an edit starts from, until the job ends
redis.call('ZADD', key('list', scope), sequence, id)
redis.call('HINCRBY', COUNTERS, 'submitted:' .. kind, 1)
redis.call('HINCRBY', COUNTERS, 'state:queued', 1)
if limited(scope, kind) then redis.call('HINCRBY', key('open'), scope, 1) end
join(id)
return {'new', id, text(at)}
