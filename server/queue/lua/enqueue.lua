-- Accept a job. args: id, input (JSON text), kind, model, class, caller, owner, work, fingerprint,
-- follow_events, bytes that it takes with its images, reserved_bytes (those of the images), limits, and optionally
-- source_bytes (of an edit's image), source_object and outside_bytes (its name and size, if it lies in FLUID_RESULTS),
-- deadline_ms, result_ttl_s, webhook, batch, trace (a traceparent), waiter (the gateway that waits for the end), key, the
-- Idempotency-Key, and cache_key with cache_s and checkpoint: hash of a request whose images may be kept for equal ones,
-- for how long, and the weights that the caller expects. With only, nothing is queued: 'cached' looks for images, 'asked'
-- for the job and then for a limit that refuses it.
-- limits: max_queue, queue_share, and max_jobs, max_batch_lines, max_webhooks, max_key_bytes, max_bytes (0: any number).
-- Returns {outcome, job id, creation time}; outcome is new, known (the same request was accepted before), differs
-- (another request had this id or key), taken (another owner has this id), gone (the job ended and was deleted), cached
-- (an equal request of this owner has the images), uncached (none has, only = 'cached'), room (no limit refuses it,
-- only = 'asked'), over (the batch of this line is not in progress), no_source (there is no image of source_bytes),
-- late_source (its object is about to be deleted), or the limit that refuses it: full, share, busy, lines, webhooks,
-- key_bytes, bytes (then the second value is how much of it is used instead of the id).
-- Safe to repeat: a client library that retries after a lost reply does not enqueue twice.
local IDEMPOTENT_FOR_S = 86400
local KEY_BYTES = 512 -- of an idempotency key that is remembered, beside its own
local CACHED_LEFT_S = 60 -- a cached job stays at least this long, for the response and its retries
local id, owner = args.id, args.owner
local idempotency = args.key and keys.idempotency_hash(owner, args.key)
local key_bytes = idempotency and KEY_BYTES + #args.key or 0
local fingerprint
if idempotency then
  local f = redis.call('HMGET', idempotency, 'id', 'fingerprint')
  id, fingerprint = f[1] or id, f[2]
end
local job = keys.job_hash(id)
local known = read(id, 'fingerprint', 'created_at', 'owner')
local created_at = known[2]
fingerprint = fingerprint or known[1]
if created_at and known[3] ~= owner then return {'taken', id, ''} end
if fingerprint and fingerprint ~= args.fingerprint then return {'differs', id, ''} end
if created_at then return {'known', id, created_at} end
if redis.call('EXISTS', keys.tombstone(id)) == 1 then return {'gone', id, ''} end
if args.batch then -- a gateway may be queueing this line while another one ends the batch
  local status = redis.call('HGET', keys.batch_hash(args.batch), 'status')
  if status and status ~= 'in_progress' then return {'over', id, ''} end
end

local function remember(job_id)
  if not idempotency then return end
  if redis.call('EXISTS', idempotency) == 0 then
    keep('idempotency:' .. id, owner, key_bytes, clock() + IDEMPOTENT_FOR_S)
  end
  redis.call('HSET', idempotency, 'id', job_id, 'fingerprint', args.fingerprint)
  redis.call('EXPIRE', idempotency, IDEMPOTENT_FOR_S)
end

if args.cache_key then -- before the other limits: it takes no place
  local kept = keys.result_cache(owner, args.cache_key, args.checkpoint)
  local found = not memory_refusal(owner, key_bytes, args.limits) and redis.call('GET', kept)
  local f = found and read(found, 'state', 'owner', 'expires_at', 'created_at')
  if f and f[1] == 'succeeded' and f[2] == owner and read_number(f[3]) > clock() + CACHED_LEFT_S then
    remember(found)
    return {'cached', found, f[4]}
  end
  if args.only == 'cached' then return {'uncached', id, ''} end
end
local limits, is_line = args.limits, args.kind == 'batch'
-- Each model has a line of its own: one that has no worker must not take the others' places.
local queued, own = 0, 0
for _, class in ipairs(PRIORITIES) do
  queued = queued + redis.call('ZCARD', keys.waiting_since_zset(args.model, class))
end
if queued >= limits.max_queue then return {'full', tostring(queued), ''} end
if owner ~= '' or is_line then
  -- Of the places that others leave, never all: however many callers flood the queue, the next one finds some.
  for _, class in ipairs(owner ~= '' and PRIORITIES or {}) do
    own = own + redis.call('ZCARD', keys.waiting_zset(args.model, class, args.caller))
  end
  if owner == '' then own = queued end
  if own > 0 and own >= limits.queue_share * (limits.max_queue - queued + own) then
    return {'share', tostring(own), ''}
  end
end
local open_by = open_field(owner, args.kind, args.model)
local open = open_by and tonumber(redis.call('HGET', keys.open_jobs_hash, open_by) or '0') or 0
local most = is_line and limits.max_batch_lines or limits.max_jobs
if open_by and most > 0 and open >= most then return {is_line and 'lines' or 'busy', tostring(open), ''} end
if args.webhook and limits.max_webhooks > 0 then
  local pending = redis.call('ZCARD', keys.webhooks_zset(owner))
  if pending >= limits.max_webhooks then return {'webhooks', tostring(pending), ''} end
end
local outside = args.outside_bytes or 0
local refused = memory_refusal(owner, args.bytes + outside + key_bytes, limits, args.bytes + key_bytes)
if refused then return {refused[1], refused[2], ''} end
if args.only == 'asked' then return {'room', id, ''} end
-- A failover since the image was stored may have lost it.
if args.source_object then
  local until_s = redis.call('ZSCORE', keys.discarded_zset, args.source_object)
  if not until_s then return {'no_source', id, ''} end
  if tonumber(until_s) <= clock() then return {'late_source', id, ''} end
elseif args.source_bytes and redis.call('EXISTS', keys.input_bytes(id)) == 0 then
  return {'no_source', id, ''}
end
local at = clock()
local sequence = redis.call('HINCRBY', keys.counters_hash, 'sequence', 1)
local deadline = args.deadline_ms and time_text(at + args.deadline_ms / 1000)
local record = {'id', id, 'state', 'queued', 'input', args.input, 'kind', args.kind, 'created_at', time_text(at),
  'sequence', sequence, 'attempt', 0, 'token', 0, 'model', args.model, 'class', args.class, 'caller', args.caller,
  'work', args.work, 'fingerprint', args.fingerprint, 'owner', owner, 'bytes', args.bytes,
  'reserved_bytes', args.reserved_bytes}

local function write(field, value)
  if value then record[#record + 1], record[#record + 2] = field, value end
end

write('deadline', deadline)
for _, field in ipairs({'webhook', 'batch', 'result_ttl_s', 'source_bytes', 'source_object', 'outside_bytes', 'trace',
  'cache_key', 'cache_s', 'waiter'}) do
  write(field, args[field])
end
redis.call('HSET', job, unpack(record))
remember(id)
if args.follow_events then redis.call('XADD', keys.events_stream(id), '*', 'type', 'status', 'value', 'queued') end
-- The source image of an edit stays until the job ends.
if args.source_object then redis.call('ZREM', keys.discarded_zset, args.source_object) end
if args.source_bytes then redis.call('PERSIST', keys.input_bytes(id)) end
redis.call('ZADD', keys.jobs_zset(owner), sequence, id)
redis.call('ZADD', keys.state_jobs_zset(owner, 'queued'), sequence, id)
charge(owner, args.bytes + outside, args.bytes)
count('submitted:' .. args.kind)
count('state:queued')
if open_by then redis.call('HINCRBY', keys.open_jobs_hash, open_by, 1) end
enqueue_waiting(id, args.model, args.class, args.caller, args.work, sequence, deadline)
return {'new', id, time_text(at)}
