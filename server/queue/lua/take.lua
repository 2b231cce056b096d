-- Take the next waiting job of a model, as a lease. args: model, worker, lease_ms, max_attempts, ttl_s, token, ageing_s,
-- min_wait_s, the least time that the job must have waited, and preempting, absent to take any job, else by class
-- {any_caller, others, but}: see lease_queue.Preempting. With but_stored, edits whose image lies in FLUID_RESULTS are left
-- to workers that have it. Returns {} if there is none, else {lease, 1 if more jobs wait}: a worker that knows that none
-- does blocks for the next one without asking again.
-- Safe to repeat: a repetition after a lost reply has the same token and gets the same job, without a new attempt,
-- unless another worker has the job by then.
local model = args.model
local last_take = keys.last_take(args.worker) -- "TOKEN ID"
local token, known = string.match(redis.call('GET', last_take) or '', '^(%d+) (.*)$')
if tonumber(token) == args.token and read_leased(known, args.token) then
  return {lease_reply(known, read(known, 'token', 'attempt', 'input', 'created_at', 'started_at', 'error', 'trace')), 1}
end

-- The job's first fields if its record agrees that it waits in this class, and for this caller if one is given.
local function waits_in(class, id, caller)
  local f = intact(id)
  return f and f[1] == 'queued' and f[2] == model and f[3] == class and (not caller or f[4] == caller) and f or nil
end

-- Ageing: a job that has waited long enough goes up one class, at most a few per call.
local now = clock()

local function move_up(id, f, class)
  dequeue_waiting(id, false, model, f[3], f[4], f[5])
  redis.call('HSET', keys.job_hash(id), 'class', class, 'aged', 1)
  enqueue_waiting(id, model, class, f[4], f[5], f[9], f[6])
end

for i = 3, #PRIORITIES do
  local since = keys.waiting_since_zset(model, PRIORITIES[i])
  local old = redis.call('ZRANGEBYSCORE', since, '-inf', time_text(now - args.ageing_s), 'LIMIT', 0, 8)
  for _, id in ipairs(old) do
    local f = waits_in(PRIORITIES[i], id)
    if f then
      move_up(id, f, PRIORITIES[i - 1])
    else
      redis.call('ZREM', since, id)
    end
  end
end

-- Into the first class a job goes only from behind jobs that belong there, and one of each caller at a time: a flood
-- that has waited long would go before every fresh job of the other callers.
local CALLERS_READ = 16
local top, below = PRIORITIES[1], PRIORITIES[2]
local ahead = redis.call('ZRANGE', keys.callers_zset(model, top), 0, 0)[1]
local head = ahead and redis.call('ZRANGE', keys.waiting_zset(model, top, ahead), 0, 0)[1]
if head and intact(head) and not redis.call('HGET', keys.job_hash(head), 'aged') then
  for _, caller in ipairs(redis.call('ZRANGE', keys.callers_zset(model, below), 0, CALLERS_READ - 1)) do
    local id = redis.call('ZRANGE', keys.waiting_zset(model, below, caller), 0, 0)[1]
    local since = id and redis.call('ZSCORE', keys.waiting_since_zset(model, below), id)
    local f = since and tonumber(since) <= now - args.ageing_s and waits_in(below, id, caller)
    if f then move_up(id, f, top) end
  end
end

-- A caller's next job, of the first few if some of them are left to other workers.
local function next_job(class, caller)
  local waiting = keys.waiting_zset(model, class, caller)
  if not args.but_stored then return redis.call('ZRANGE', waiting, 0, 0)[1] end
  for _, id in ipairs(redis.call('ZRANGE', waiting, 0, CALLERS_READ - 1)) do
    if type(redis.pcall('HGET', keys.job_hash(id), 'source_object')) ~= 'string' then return id end
  end
end

-- The caller whose turn it is in a class, and its job; of those only whose next job may preempt, if only such jobs are
-- wanted.
local function next_of(class)
  local callers = keys.callers_zset(model, class)
  if not args.preempting and not args.but_stored then
    local caller = redis.call('ZRANGE', callers, 0, 0)[1]
    return caller, caller and next_job(class, caller)
  end
  local wanted, held = args.preempting and args.preempting[class], {}
  if args.preempting and not wanted then return nil end
  for _, caller in ipairs(wanted and wanted.but or {}) do held[caller] = true end
  for _, caller in ipairs(redis.call('ZRANGE', callers, 0, (wanted and #wanted.but or 0) + CALLERS_READ - 1)) do
    local id = next_job(class, caller)
    local suits = not wanted or (wanted.others and not held[caller])
      or (wanted.any_caller and id and not redis.call('HGET', keys.job_hash(id), 'aged'))
    if suits and (id or not args.but_stored) then return caller, id end
  end
end

for _, class in ipairs(PRIORITIES) do
  while true do
    local caller, id = next_of(class)
    if not caller then break end
    local f = id and waits_in(class, id, caller)
    if not id then
      redis.call('ZREM', keys.callers_zset(model, class), caller)
    elseif not f then
      -- Its record is gone, damaged or says otherwise: without this, the loop would meet it again without end.
      redis.call('ZREM', keys.waiting_zset(model, class, caller), id)
      redis.call('ZREM', keys.waiting_since_zset(model, class), id)
    elseif tonumber(f[6] or now + 1) <= now then
      abort(id, args.ttl_s)
    elseif args.min_wait_s > 0
      and tonumber(redis.call('ZSCORE', keys.waiting_since_zset(model, class), id) or '0') > now - args.min_wait_s then
      return {}
    else
      local found = start_attempt(id, args.token, args)
      if found then
        redis.call('SET', last_take, string.format('%d %s', args.token, id), 'EX', 60)
        local lines = {}
        for i, each in ipairs(PRIORITIES) do lines[i] = keys.callers_zset(model, each) end
        return {found, math.min(redis.call('EXISTS', unpack(lines)), 1)}
      end
    end
  end
end
return {}
