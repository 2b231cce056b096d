-- Renew leases, write progress, read cancel flags: one call for all jobs of a worker.
-- ARGV: 1 lease_ms (0 = do not renew), then per job: id, token, running (0|1), step.
local lease_ms = tonumber(ARGV[1])
local now = clock()
local answers = {}
for a = 2, #ARGV, 4 do
  local id, token, running, step = ARGV[a], ARGV[a + 1], ARGV[a + 2] == '1', ARGV[a + 3]
  local job = key('job', id)
  local f = read(id, 'state', 'token', 'step', 'cancel', 'deadline')
  if not f[1] or TERMINAL[f[1]] or f[2] ~= token then
    answers[#answers + 1] = 'lost' -- never renew for a zombie
  else
    if lease_ms > 0 then hold(id, lease_ms) end
    if running then move(id, 'processing') end
    if f[3] ~= step then
      redis.call('HSET', job, 'step', step)
      tell(id, 'progress', step)
    end
    local cancel = f[4] == '1'
    if not cancel and f[5] and tonumber(f[5]) <= now then
      cancel = true
      redis.call('HSET', job, 'cancel', 1, 'error',
        cjson.encode({code = 'deadline_exceeded', message = 'Its deadline passed while it was being drawn.'}))
    end
    answers[#answers + 1] = cancel and 'cancel' or 'ok'
  end
end
return answers
