-- Shared by every script: prepended at load. Redis 7.0 commands only.
-- KEYS[1] is '{namespace}', the first part of every key; the rest is formed here, because a script that picks a job
-- cannot know its key beforehand. The hash tag keeps all of them on one node of a cluster.
--   counters              hash: states, submissions, what else is counted
--   job:ID                hash: the record        resume:ID  hash: finished images and snapshots of a job under way
--   input:ID              the picture that an edit starts from, until the job ends
--   since:MODEL:CLASS     waiting jobs by the time they joined the class; line:MODEL:CLASS:CALLER  by sequence
--   ring:MODEL:CLASS      callers who wait, by their virtual time; bell:MODEL  wakes idle workers
--   leases:MODEL          running jobs by the end of their lease; deadlines, ended: jobs by the time something is due
--   events:ID             stream: what happened to a job that somebody follows; preview:ID:INDEX:NUMBER  its previews
--   hooks, hook:ID        webhooks by the time of their next try; batches, batch:ID  batches by their next turn
--   list:SCOPE            every job with a record, by sequence; idem:SCOPE:KEY  hash: the job of an Idempotency-Key
--   open                  hash: jobs that wait or run, by scope; rate:SCOPE  when its allowance of requests is whole again
local P = KEYS[1]
local function key(...) return table.concat({P, ...}, ':') end
local COUNTERS, DEADLINES, ENDED, DEAD, DONE = key('counters'), key('deadlines'), key('ended'), key('dead'), key('done')
local NEWS = key('news')
local CLASSES = {'high', 'normal', 'low'}
local TERMINAL = {succeeded = true, failed = true, canceled = true, aborted = true}
local TOMBSTONE_EXTRA_S = 86400
local DEAD_KEPT = 10000 -- dead letters are for people to read; for ever would be a leak
local BELL_KEPT = 64
local HOOK_KEPT_S = 4 * 86400
local EVENTS_KEPT = 1000 -- of one job; at ten a second a follower may be away for a minute and a half

local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function text(seconds) return string.format('%.6f', seconds) end

local function read(id, ...) return redis.call('HMGET', key('job', id), ...) end

-- Only of jobs that somebody follows: `enqueue` or `follow` made the stream. The others cost nothing.
local function tell(id, kind, value)
  local events = key('events', id)
  if redis.call('EXISTS', events) == 0 then return end
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'value', value)
  redis.call('PUBLISH', NEWS, id)
end

-- Every transition goes through here, so the counters always add up to `submitted`.
local function move(id, to)
  local from = redis.call('HGET', key('job', id), 'state')
  if from == to then return end
  redis.call('HINCRBY', COUNTERS, 'state:' .. from, -1)
  redis.call('HINCRBY', COUNTERS, 'state:' .. to, 1)
  redis.call('HSET', key('job', id), 'state', to)
  tell(id, 'status', to)
end

-- ---- waiting: first by class, then by caller, then by age ------------------------------------------------------
-- Callers share a class by start-time fair queueing: a caller's virtual time is the work it was given, and the least
-- goes first. Who comes anew starts at the class's own time, so nobody saves up a claim by staying away.

local function number(x) return string.format('%.17g', x) end

local function virtual(model, class, work)
  local field = 'virtual:' .. model .. ':' .. class
  local now = tonumber(redis.call('HGET', COUNTERS, field) or '0')
  if work and work > now then redis.call('HSET', COUNTERS, field, number(work)) end
  return now
end

local function join(id)
  local f = read(id, 'model', 'class', 'caller', 'sequence', 'work', 'deadline')
  local model, class, caller = f[1], f[2], f[3]
  redis.call('ZADD', key('since', model, class), text(clock()), id)
  redis.call('ZADD', key('line', model, class, caller), f[4], id)
  local tab, ring = key('tab', model, class), key('ring', model, class)
  if not redis.call('ZSCORE', ring, caller) then
    local now = virtual(model, class)
    -- The tab remembers callers who were just served more than the others: leaving and coming back wins nothing.
    redis.call('ZREMRANGEBYSCORE', tab, '-inf', number(now))
    redis.call('ZADD', ring, redis.call('ZSCORE', tab, caller) or number(now), caller)
  end
  redis.call('HINCRBY', COUNTERS, 'work:' .. model, f[5])
  if f[6] then redis.call('ZADD', DEADLINES, f[6], id) end
  redis.call('RPUSH', key('bell', model), 1)
  redis.call('LTRIM', key('bell', model), -BELL_KEPT, -1)
end

-- Out of the line, whatever for; `served` charges the caller for the work.
local function quit(id, served)
  local f = read(id, 'model', 'class', 'caller', 'work')
  local model, class, caller, work = f[1], f[2], f[3], tonumber(f[4])
  local line, ring = key('line', model, class, caller), key('ring', model, class)
  redis.call('ZREM', key('since', model, class), id)
  redis.call('ZREM', line, id)
  redis.call('HINCRBY', COUNTERS, 'work:' .. model, -work)
  local at = tonumber(redis.call('ZSCORE', ring, caller) or '0')
  if served then
    virtual(model, class, at)
    at = at + work
  end
  if redis.call('EXISTS', line) == 1 then
    redis.call('ZADD', ring, number(at), caller)
  else
    redis.call('ZREM', ring, caller)
    redis.call('ZADD', key('tab', model, class), number(at), caller)
  end
end

-- A batch feeds its lines by itself, a few at a time: they are not its owner's impatience.
local function limited(scope, kind) return scope and scope ~= '' and kind ~= 'batch' end

-- ---- the end -----------------------------------------------------------------------------------------------------

-- Into a terminal state: the record and its tombstone get their time to live, and waiters are woken.
local function conclude(id, state, ttl_s)
  local job, at = key('job', id), clock()
  local f = read(id, 'model', 'state', 'result_ttl_s', 'owner', 'webhook', 'batch', 'kind')
  ttl_s = tonumber(f[3] or ttl_s)
  if f[2] == 'queued' then quit(id, false) end
  redis.call('ZREM', key('leases', f[1]), id)
  redis.call('ZREM', DEADLINES, id)
  redis.call('DEL', key('resume', id))
  if state == 'failed' then -- a dead letter that is replayed in time needs it
    redis.call('EXPIRE', key('input', id), ttl_s)
  else
    redis.call('DEL', key('input', id))
  end
  redis.call('HSET', job, 'completed_at', text(at), 'expires_at', text(at + ttl_s))
  move(id, state) -- whoever hears of the end finds its time in the record
  redis.call('EXPIRE', job, ttl_s)
  redis.call('EXPIRE', key('events', id), ttl_s)
  redis.call('ZADD', ENDED, text(at + ttl_s), id)
  redis.call('SET', key('tomb', id), state .. ' ' .. (f[4] or ''), 'EX', ttl_s + TOMBSTONE_EXTRA_S)
  if f[5] then -- whoever delivers it needs neither the record nor luck; see server/gateway/webhooks.py
    redis.call('HSET', key('hook', id), 'url', f[5], 'tries', 0)
    redis.call('EXPIRE', key('hook', id), HOOK_KEPT_S)
    redis.call('ZADD', key('hooks'), text(at), id)
  end
  if f[6] and redis.call('EXISTS', key('batch', f[6])) == 1 then
    redis.call('HINCRBY', key('batch', f[6]), 'ended:' .. state, 1)
  end
  if limited(f[4], f[7]) and redis.call('HINCRBY', key('open'), f[4], -1) <= 0 then
    redis.call('HDEL', key('open'), f[4])
  end
  redis.call('PUBLISH', DONE, id)
end

local function abort(id, ttl_s)
  local error = cjson.encode({code = 'deadline_exceeded', message = 'Its deadline passed before a worker was free.'})
  redis.call('HSET', key('job', id), 'error', error)
  conclude(id, 'aborted', ttl_s)
end

local function bury(id, error)
  local f = read(id, 'input', 'kind', 'caller', 'attempt')
  redis.call('HINCRBY', COUNTERS, 'dead_lettered', 1)
  redis.call('XADD', DEAD, 'MAXLEN', '~', DEAD_KEPT, '*',
    'id', id, 'error', error, 'input', f[1], 'kind', f[2], 'caller', f[3], 'attempt', f[4])
end

-- ---- leases ------------------------------------------------------------------------------------------------------

local function hold(id, lease_ms)
  redis.call('ZADD', key('leases', redis.call('HGET', key('job', id), 'model')), text(clock() + lease_ms / 1000), id)
end

local function describe(id)
  local f = read(id, 'token', 'attempt', 'input', 'created_at', 'started_at', 'error')
  return {id, f[1], f[2], f[3], f[4], f[5], f[6] or '', redis.call('EXISTS', key('resume', id))}
end

-- Begin a try. Returns nothing if there may be no more of them: then the job has ended here.
local function lease(id, worker, lease_ms, max_attempts, ttl_s)
  local job = key('job', id)
  local f = read(id, 'cancel', 'error', 'state')
  redis.call('HINCRBY', job, 'token', 1) -- whoever had it is fenced out
  if f[1] == '1' then -- its worker died before it saw the flag
    conclude(id, 'canceled', ttl_s)
    return nil
  end
  local error = f[2] or ''
  local attempt = redis.call('HINCRBY', job, 'attempt', 1)
  if f[3] ~= 'queued' then redis.call('HINCRBY', COUNTERS, 'redeliveries', 1) end
  if attempt > max_attempts then
    if error == '' then
      error = cjson.encode({code = 'worker_lost', message = 'The job was started ' .. max_attempts ..
        ' times and its worker died or fell silent each time.'})
      redis.call('HSET', job, 'error', error)
    end
    redis.call('HSET', job, 'attempt', max_attempts)
    bury(id, error)
    conclude(id, 'failed', ttl_s)
    return nil
  end
  if f[3] == 'queued' then quit(id, true) end
  redis.call('ZREM', DEADLINES, id)
  move(id, 'starting')
  redis.call('HSET', job, 'started_at', text(clock()), 'step', 0, 'worker', worker)
  hold(id, lease_ms)
  return describe(id)
end
