-- Renew leases, write progress, read cancel flags: one call for all jobs of a worker. args: lease_ms, absent to leave
-- the leases as they are, and jobs, a list of {id, token, running, step}. Returns ok, cancel or lost for each.
local now = clock()
local answers = {}
for i, renewal in ipairs(args.jobs) do
  local id, step = renewal.id, tostring(renewal.step)
  local job = keys.job_hash(id)
  local f = read_leased(id, renewal.token, 'step', 'cancel_requested', 'deadline', 'owner', 'model', 'sequence')
  if not f then
    answers[i] = 'lost' -- never renew for a zombie
  else
    if args.lease_ms then set_lease(id, f[7], args.lease_ms) end
    if renewal.running then transition(id, f[1], 'processing', f[6], f[8]) end
    if f[3] ~= step then
      redis.call('HSET', job, 'step', step)
      emit(id, 'progress', step)
    end
    local cancel = f[4] == '1'
    if not cancel and f[5] and tonumber(f[5]) <= now then
      cancel = true
      redis.call('HSET', job, 'cancel_requested', 1, 'error', cjson.encode(LATE))
    end
    answers[i] = cancel and 'cancel' or 'ok'
  end
end
return answers
