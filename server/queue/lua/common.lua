-- Shared by the scripts. server/queue/scripts.py puts before each what it uses of this file, with `args`, PRIORITIES,
-- TERMINAL and BATCH_OVER, and puts the text of each key in place of its name (server/queue/keys describes them all).
-- Each top-level statement begins with `local` and uses earlier ones only. Redis 7.0 commands only.
-- KEYS[1] is '{namespace}', the first part of every key. Scripts build the rest, because one that picks a job
-- cannot know its keys in advance; the hash tag keeps all of them on one node of a cluster.
local TOMBSTONE_EXTRA_S = 86400
local DEAD_LETTERS_KEPT = 10000 -- they are for people to read; unbounded, they would be a leak
local WAKEUPS_KEPT = 64
local DEBTS_KEPT = 1000 -- callers who came once and never return must not fill Redis
local DEBTS_KEPT_S = 3600
local WEBHOOK_KEPT_S = 4 * 86400
local EVENTS_KEPT = 1000 -- per job; at ten a second a follower may be away for a minute and a half
local STREAM_BYTES = 4400 -- of a job's events, whose first block Redis reserves whole (measured)
local EVENT_BYTES = 24 -- of each of them (measured)
local INDEX = {starting = 'running', processing = 'running'} -- states that share an index; also in gateway/pagination.py
local FILE_RECORD_BYTES = 1024 -- of a file beside its content
local FAILOVER_S = 60 -- what an end that a failover may lose has deleted stays for so long

local at_call = {}

-- Redis' clock, read once in a call.
local function clock()
  if not at_call.now then
    local t = redis.call('TIME')
    at_call.now = tonumber(t[1]) + tonumber(t[2]) / 1e6
  end
  return at_call.now
end

local function time_text(seconds) return string.format('%.6f', seconds) end

local function read(id, ...) return redis.call('HMGET', keys.job_hash(id), ...) end

local function is_number(text) return #text <= 17 and string.find(text, '^%-?%d+%.?%d*$') ~= nil end
local function is_whole(text) return text and is_number(text) and not string.find(text, '.', 1, true) end

-- The first fields of the record: state, model, class, caller, work, deadline (or false), if it has what waiting, leasing
-- and ending a job read; else nil. One without would fail every script that meets it.
local function intact(id)
  local f = redis.pcall('HMGET', keys.job_hash(id), 'state', 'model', 'class', 'caller', 'work', 'deadline', 'input',
    'kind', 'sequence', 'attempt', 'result_ttl_s')
  if f.err then return nil end -- no hash
  for i = 1, 10 do
    if not f[i] and i ~= 6 then return nil end
  end
  return is_whole(f[5]) and is_whole(f[9]) and is_whole(f[10]) and (not f[11] or is_whole(f[11]))
    and (not f[6] or is_number(f[6])) and f or nil
end

local function count(what, by) redis.call('HINCRBY', keys.counters_hash, what, by or 1) end

-- Append an event of a followed job: `enqueue` or `follow` made its stream. Returns false for other jobs.
local function emit(id, kind, value)
  local events = keys.events_stream(id)
  if redis.call('EXISTS', events) == 0 then return false end
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'value', value)
  redis.call('PUBLISH', keys.updated_channel, id)
  return true
end

-- Every transition goes through here, so the counters always add up to the number of submissions. `from`, `owner` and
-- `sequence` are the record's. Further arguments are fields of the record and their values, to write with the state.
-- Returns whether the job's events are kept.
local function transition(id, from, to, owner, sequence, ...)
  if from == to then return false end
  owner = owner or ''
  count('state:' .. from, -1)
  count('state:' .. to)
  local index, next_index = INDEX[from] or from, INDEX[to] or to
  if index ~= next_index then
    redis.call('ZREM', keys.state_jobs_zset(owner, index), id)
    if sequence then redis.call('ZADD', keys.state_jobs_zset(owner, next_index), sequence, id) end
  end
  redis.call('HSET', keys.job_hash(id), 'state', to, ...)
  return emit(id, 'status', to)
end

-- ---- waiting: first by class, then by caller, then by age ------------------------------------------------------
-- Callers share a class by start-time fair queueing: a caller's virtual time is the work it was given, and the least
-- goes first. A new caller starts at the class's own virtual time, so staying away earns no credit.

local function number_text(x) return string.format('%.17g', x) end

-- The class's virtual time, after moving it forward to `work` if that is given and later.
local function virtual_time(model, class, work)
  local field = 'virtual:' .. model .. ':' .. class
  local now = tonumber(redis.call('HGET', keys.counters_hash, field) or '0')
  if work and work > now then redis.call('HSET', keys.counters_hash, field, number_text(work)) end
  return now
end

-- Add a job to the waiting jobs of its class and wake a worker. What follows the id is the record's; deadline may be nil.
local function enqueue_waiting(id, model, class, caller, work, sequence, deadline)
  redis.call('ZADD', keys.waiting_since_zset(model, class), time_text(clock()), id)
  redis.call('ZADD', keys.waiting_zset(model, class, caller), sequence, id)
  local debts, callers = keys.debts_zset(model, class), keys.callers_zset(model, class)
  if not redis.call('ZSCORE', callers, caller) then
    local now = virtual_time(model, class)
    -- Debts remember callers who were just served more than the others: leaving and coming back gains nothing.
    redis.call('ZREMRANGEBYSCORE', debts, '-inf', number_text(now))
    redis.call('ZADD', callers, redis.call('ZSCORE', debts, caller) or number_text(now), caller)
  end
  count('work:' .. model, work)
  if deadline then redis.call('ZADD', keys.deadlines_zset, deadline, id) end
  if redis.call('RPUSH', keys.wakeup_list(model), 1) > WAKEUPS_KEPT then
    redis.call('LTRIM', keys.wakeup_list(model), -WAKEUPS_KEPT, -1)
  end
end

-- Remove a job from the waiting jobs, for any reason; `served` charges the caller for the work. The rest is the record's.
local function dequeue_waiting(id, served, model, class, caller, work)
  local waiting, callers = keys.waiting_zset(model, class, caller), keys.callers_zset(model, class)
  redis.call('ZREM', keys.waiting_since_zset(model, class), id)
  redis.call('ZREM', waiting, id)
  count('work:' .. model, -work)
  local at = tonumber(redis.call('ZSCORE', callers, caller) or '0')
  if served then
    virtual_time(model, class, at)
    at = at + tonumber(work)
  end
  if redis.call('EXISTS', waiting) == 1 then
    redis.call('ZADD', callers, number_text(at), caller)
  else
    redis.call('ZREM', callers, caller)
    local debts = keys.debts_zset(model, class)
    if redis.call('ZADD', debts, number_text(at), caller) == 1 then
      redis.call('ZREMRANGEBYRANK', debts, 0, -DEBTS_KEPT - 1) -- the smallest matter least
    end
    redis.call('EXPIRE', debts, DEBTS_KEPT_S)
  end
end

-- The field that counts open jobs like this one, or nil. A batch's lines have a limit of their own: the service itself
-- submits them, a few at a time of each model, since one without a worker must not hold up the others.
local function open_field(owner, kind, model)
  if kind == 'batch' then return (owner or '') .. ' batch ' .. model end
  return owner and owner ~= '' and owner or nil
end

-- ---- memory ------------------------------------------------------------------------------------------------------
-- What is kept for an owner is counted in bytes, by owner and in total: of a job in its record's field `bytes` while it
-- is open and in the set of ended jobs after that, of files and batches in the set of what is stored.

-- A size or time of a record, without its fraction; 0 if it has none, or one that no version can have written.
local function read_number(text)
  local number = tonumber(text or '')
  return number and number >= 0 and number < 1e14 and math.floor(number) or 0
end

-- Add to a count; one that is damaged begins again.
local function add_bytes(key, field, bytes)
  local sum = redis.pcall('HINCRBY', key, field, bytes)
  if type(sum) == 'table' then redis.call('HSET', key, field, math.max(0, bytes)) end
  if type(sum) == 'number' and sum <= 0 then redis.call('HDEL', key, field) end
end

-- `in_redis`: what of the bytes takes Redis' memory, if not all; an owner's limit counts what lies in FLUID_RESULTS, too.
local function charge(owner, bytes, in_redis)
  if bytes == 0 then return end
  add_bytes(keys.stored_bytes_hash, owner, bytes)
  local total = in_redis or bytes
  if total ~= 0 then add_bytes(keys.counters_hash, 'stored_bytes', total) end -- Redis 7.0 takes Lua's -0 for no integer
end

-- What refuses `bytes` more of this owner: {outcome, bytes in use}, or nil. `limits`: max_key_bytes and max_bytes, 0 for
-- none. Without API keys there are no owners to tell apart.
local function memory_refusal(owner, bytes, limits, in_redis)
  local used = owner == '' and 0 or read_number(redis.call('HGET', keys.stored_bytes_hash, owner))
  if owner ~= '' and limits.max_key_bytes > 0 and used + bytes > limits.max_key_bytes then
    return {'key_bytes', tostring(used)}
  end
  if limits.max_bytes == 0 then return nil end
  local total = read_number(redis.call('HGET', keys.counters_hash, 'stored_bytes'))
  if total + (in_redis or bytes) > limits.max_bytes then return {'bytes', tostring(total)} end
end

local function stored_name(id, owner, bytes, in_redis)
  return id .. ' ' .. owner .. ' ' .. bytes .. (in_redis and ' ' .. in_redis or '')
end

-- Count a file or batch until it expires.
local function keep(id, owner, bytes, expires_at, in_redis)
  redis.call('ZADD', keys.stored_zset, time_text(expires_at), stored_name(id, owner, bytes, in_redis))
  charge(owner, bytes, in_redis)
end

local function forget(name)
  local owner, bytes, in_redis = string.match(name, '^%S+ (%S*) (%d+) ?(%d*)$')
  if redis.call('ZREM', keys.stored_zset, name) == 1 and bytes then
    charge(owner, -tonumber(bytes), -tonumber(in_redis ~= '' and in_redis or bytes))
  end
end

-- Have a gateway delete an object of FLUID_RESULTS at a time; a second call sets another time.
local function discard(object, at) redis.call('ZADD', keys.discarded_zset, time_text(at), object) end

-- Keep a file's content as long as the file or a batch that reads it; return false if nothing needs it any more.
local function keep_content(file, owner)
  local now, content, readers = clock(), keys.file_bytes(file), keys.file_readers_zset(file)
  local outside = keys.file_object_hash(file)
  local object = redis.call('HMGET', outside, 'name', 'size_bytes')
  local bytes = object[1] and read_number(object[2]) or redis.call('STRLEN', content)
  local name = stored_name(file, owner, bytes + FILE_RECORD_BYTES, object[1] and FILE_RECORD_BYTES)
  local expires_at = read_number(redis.call('HGET', keys.file_hash(file), 'expires_at'))
  local last = redis.call('ZREVRANGE', readers, 0, 0, 'WITHSCORES')
  if last[2] then expires_at = math.max(expires_at, tonumber(last[2])) end
  if object[1] then discard(object[1], expires_at) end
  if expires_at <= now then
    redis.call('DEL', content, outside, readers)
    forget(name)
    return false
  end
  for _, each in ipairs({content, outside, readers}) do redis.call('EXPIREAT', each, math.ceil(expires_at)) end
  redis.call('ZADD', keys.stored_zset, 'XX', time_text(expires_at), name)
  return true
end

-- ---- the end -----------------------------------------------------------------------------------------------------

local RECORD = {'state', 'kind', 'created_at', 'sequence', 'attempt', 'token', 'step', 'started_at', 'completed_at',
  'expires_at', 'cancel_requested', 'outputs', 'error', 'metrics'}

-- Send the record without its input, and its image, to the gateway that waits for the job: it need not ask for them.
local function answer(id, gateway, file)
  local record = {id = id}
  for i, value in ipairs(read(id, unpack(RECORD))) do record[RECORD[i]] = value or nil end
  redis.call('PUBLISH', keys.answers_channel(gateway), cjson.encode(record) .. '\n' .. (file or ''))
end

-- Move a job into a terminal state: the record and its tombstone get their time to live, and waiters are woken.
-- `result` is nil, or bytes: the size of its images, in place of what was reserved for them, and file: its only image, if
-- that is small. Further arguments are fields of the record and their values. Returns when the record expires.
local function finish(id, state, ttl_s, result, ...)
  local job, at = keys.job_hash(id), clock()
  local f = read(id, 'model', 'state', 'result_ttl_s', 'owner', 'webhook', 'batch', 'kind', 'bytes', 'reserved_bytes',
    'source_bytes', 'deadline', 'class', 'caller', 'work', 'sequence', 'waiter', 'source_object', 'outside_bytes')
  ttl_s = tonumber(f[3] or ttl_s)
  local owner, before = f[4] or '', read_number(f[8])
  local bytes = before - read_number(f[9]) + (result and result.bytes or 0)
  if f[2] == 'queued' then dequeue_waiting(id, false, f[1], f[12], f[13], f[14]) end
  redis.call('ZREM', keys.leases_zset(f[1]), id)
  if f[11] then redis.call('ZREM', keys.deadlines_zset, id) end
  if state == 'failed' then -- a dead letter that is replayed in time needs its input
    redis.call('DEL', keys.resume_hash(id))
    redis.call('EXPIRE', keys.input_bytes(id), ttl_s)
  else
    redis.call('DEL', keys.resume_hash(id), keys.input_bytes(id))
    bytes = bytes - read_number(f[10])
  end
  local outside = read_number(f[18]) -- what the image takes of FLUID_RESULTS
  if f[17] and state == 'failed' then
    discard(f[17], at + ttl_s)
    if outside > 0 then redis.call('ZADD', keys.stored_zset, time_text(at + ttl_s), stored_name(id, owner, outside, 0)) end
  elseif f[17] then
    discard(f[17], at + FAILOVER_S) -- a failover that loses this end runs the job again, and needs its image
    charge(owner, -outside, 0)
  end
  -- A follower that learns of the end finds its times in the record.
  if transition(id, f[2], state, owner, f[15], 'completed_at', time_text(at), 'expires_at', time_text(at + ttl_s), ...)
  then
    redis.call('EXPIRE', keys.events_stream(id), ttl_s)
    bytes = bytes + STREAM_BYTES + EVENT_BYTES * redis.call('XLEN', keys.events_stream(id))
  end
  redis.call('EXPIRE', job, ttl_s)
  bytes = math.max(0, bytes)
  charge(owner, bytes - before)
  redis.call('ZADD', keys.ended_zset, time_text(at + ttl_s), table.concat({id, state, owner, bytes}, ' '))
  redis.call('SET', keys.tombstone(id), state .. ' ' .. owner, 'EX', ttl_s + TOMBSTONE_EXTRA_S)
  if f[5] then -- delivery does not need the record, and survives restarts; see server/gateway/webhooks.py
    local endpoint = string.lower(string.match(f[5], '^%a+://([^/?#]+)') or '')
    redis.call('HSET', keys.webhook_hash(id), 'url', f[5], 'attempts', 0, 'owner', owner, 'endpoint', endpoint)
    redis.call('EXPIRE', keys.webhook_hash(id), WEBHOOK_KEPT_S)
    redis.call('ZADD', keys.webhooks_zset(owner), time_text(at), id)
    redis.call('ZADD', keys.webhook_owners_zset, 'LT', time_text(at), owner)
  end
  if f[6] and redis.call('EXISTS', keys.batch_hash(f[6])) == 1 then
    redis.call('HINCRBY', keys.batch_hash(f[6]), 'ended:' .. state, 1)
  end
  local open = open_field(owner, f[7], f[1])
  if open and redis.call('HINCRBY', keys.open_jobs_hash, open, -1) <= 0 then
    redis.call('HDEL', keys.open_jobs_hash, open)
  end
  if f[16] then answer(id, f[16], result and result.file) end
  redis.call('PUBLISH', keys.ended_channel, id)
  return at + ttl_s
end

-- The error of a job whose deadline passes while it runs.
local LATE = {code = 'deadline_exceeded', message = 'Its deadline passed while it was being generated.'}

local function abort(id, ttl_s)
  local error = cjson.encode({code = 'deadline_exceeded', message = 'Its deadline passed before a worker was free.'})
  redis.call('HSET', keys.job_hash(id), 'error', error)
  finish(id, 'aborted', ttl_s)
end

-- End a waiting job, or flag a running one. Returns the state after the call, or nil if there is no such job.
local function cancel(id, ttl_s)
  local f = read(id, 'state', 'model')
  if not f[1] then return nil end
  if TERMINAL[f[1]] or not intact(id) then return f[1] end
  local lease_end = redis.call('ZSCORE', keys.leases_zset(f[2]), id)
  -- Once the lease has expired, no worker is left to see the flag.
  if f[1] == 'queued' or (lease_end and tonumber(lease_end) <= clock()) then
    redis.call('HINCRBY', keys.job_hash(id), 'token', 1)
    finish(id, 'canceled', ttl_s)
    return 'canceled'
  end
  redis.call('HSET', keys.job_hash(id), 'cancel_requested', 1)
  redis.call('PUBLISH', keys.canceled_channel, id) -- its worker need not wait for the next renewal
  return f[1]
end

local function dead_letter(id, error)
  local f = read(id, 'input', 'kind', 'caller', 'attempt')
  count('dead_lettered')
  redis.call('XADD', keys.dead_letters_stream, 'MAXLEN', '~', DEAD_LETTERS_KEPT, '*',
    'id', id, 'error', error, 'input', f[1], 'kind', f[2], 'caller', f[3], 'attempt', f[4])
end

-- ---- leases ------------------------------------------------------------------------------------------------------

-- The fields of a job under a lease of this token, or nil if the lease was lost or the job has ended.
local function read_leased(id, token, ...)
  local f = read(id, 'state', 'token', ...)
  if not f[1] or TERMINAL[f[1]] or tonumber(f[2]) ~= token then return nil end
  return f
end

local function set_lease(id, model, lease_ms)
  redis.call('ZADD', keys.leases_zset(model), time_text(clock() + lease_ms / 1000), id)
end

-- The reply that LeaseQueue._lease decodes. `f` is token, attempt, input, created_at, started_at, error, trace.
local function lease_reply(id, f)
  return {id, f[1], f[2], f[3], f[4], f[5], f[6] or '', redis.call('EXISTS', keys.resume_hash(id)), f[7] or ''}
end

-- Start an attempt under `limits`: worker, lease_ms, max_attempts, ttl_s. Its worker made the token at random: a counter
-- here would repeat itself after a failover to a replica that lacks the last writes. Returns nil if the job may have no
-- more attempts, or was canceled: then this call ends it.
local function start_attempt(id, token, limits)
  local job, max_attempts, ttl_s = keys.job_hash(id), limits.max_attempts, limits.ttl_s
  local f = read(id, 'state', 'model', 'class', 'caller', 'work', 'owner', 'sequence', 'deadline', 'attempt',
    'cancel_requested', 'error', 'input', 'created_at', 'trace')
  local state, model, attempt, error = f[1], f[2], f[9] + 1, f[11] or ''
  if f[10] == '1' then -- its worker died before it saw the flag
    redis.call('HSET', job, 'token', token)
    finish(id, 'canceled', ttl_s)
    return nil
  end
  if state ~= 'queued' then count('redeliveries') end
  if attempt > max_attempts then
    if error == '' then
      error = cjson.encode({code = 'worker_lost', message = 'The job was started ' .. max_attempts ..
        ' times and its worker died or fell silent each time.'})
    end
    redis.call('HSET', job, 'token', token, 'attempt', max_attempts, 'error', error)
    dead_letter(id, error)
    finish(id, 'failed', ttl_s)
    return nil
  end
  if state == 'queued' then dequeue_waiting(id, true, model, f[3], f[4], f[5]) end
  local started_at = time_text(clock())
  local fields = {'token', token, 'attempt', attempt, 'started_at', started_at, 'step', 0, 'worker', limits.worker}
  if state == 'starting' then redis.call('HSET', job, unpack(fields)) end -- no transition
  transition(id, state, 'starting', f[6], f[7], unpack(fields))
  set_lease(id, model, limits.lease_ms)
  return lease_reply(id, {token, attempt, f[12], f[13], started_at, error, f[14]})
end
