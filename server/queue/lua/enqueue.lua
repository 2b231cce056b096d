-- Accept a job. args: id, input (JSON text), kind, model, class, caller, owner, work, fingerprint,
-- follow_events, max_queue, max_jobs (0: any number), and optionally deadline_ms, result_ttl_s, webhook, batch
-- and key, the Idempotency-Key. Returns {outcome, job id, creation time}; outcome is new, known (the same request was
-- accepted before), differs (another request had this id or key), taken (another owner has this id), gone (the job
-- ended and was deleted), full or busy (then the second value is the number of jobs instead of the id).
-- Safe to repeat: a client library that retries after a lost reply does not enqueue twice.
local IDEMPOTENT_FOR_S = 86400
local id, owner = args.id, args.owner
local idempotency = args.key and keys.idempotency_hash(owner, args.key)
local fingerprint
if idempotency then
  local f = redis.call('HMGET', idempotency, 'id', 'fingerprint')
  id, fingerprint = f[1] or id, f[2]
end
local job = keys.job_hash(id)
local known = read(id, 'fingerprint', 'created_at', 'owner')
local created_at = known[2]
if created_at then fingerprint = known[1] end
if created_at and known[3] ~= owner then return {'taken', id, ''} end
if fingerprint and fingerprint ~= args.fingerprint then return {'differs', id, ''} end
if created_at then return {'known', id, created_at} end
if redis.call('EXISTS', keys.tombstone(id)) == 1 then return {'gone', id, ''} end
local queued = tonumber(redis.call('HGET', keys.counters_hash, 'state:queued') or '0')
if queued >= args.max_queue then return {'full', tostring(queued), ''} end
local open = tonumber(redis.call('HGET', keys.open_jobs_hash, owner) or '0')
if args.max_jobs > 0 and open >= args.max_jobs then return {'busy', tostring(open), ''} end
local at = clock()
local sequence = redis.call('HINCRBY', keys.counters_hash, 'sequence', 1)
redis.call('HSET', job, 'id', id, 'state', 'queued', 'input', args.input, 'kind', args.kind, 'created_at', time_text(at),
  'sequence', sequence, 'attempt', 0, 'token', 0, 'model', args.model, 'class', args.class, 'caller', args.caller,
  'work', args.work, 'fingerprint', args.fingerprint, 'owner', owner)
if args.deadline_ms then redis.call('HSET', job, 'deadline', time_text(at + args.deadline_ms / 1000)) end
for _, field in ipairs({'webhook', 'batch', 'result_ttl_s'}) do
  if args[field] then redis.call('HSET', job, field, args[field]) end
end
if idempotency then
  redis.call('HSET', idempotency, 'id', id, 'fingerprint', args.fingerprint)
  redis.call('EXPIRE', idempotency, IDEMPOTENT_FOR_S)
end
if args.follow_events then redis.call('XADD', keys.events_stream(id), '*', 'type', 'status', 'value', 'queued') end
redis.call('PERSIST', keys.input_bytes(id)) -- the source image of an edit stays until the job ends
redis.call('ZADD', keys.jobs_zset(owner), sequence, id)
count('submitted:' .. args.kind)
count('state:queued')
if counts_as_open(owner, args.kind) then redis.call('HINCRBY', keys.open_jobs_hash, owner, 1) end
enqueue_waiting(id)
return {'new', id, time_text(at)}
