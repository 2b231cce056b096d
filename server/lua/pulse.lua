-- Renew leases, write progress, read cancel flags: one call for all jobs of a worker.
-- KEYS: 1 stream, 2 counters, 3 dead, then from 4 the job hashes.
-- ARGV: 1 group, 2 consumer, 3 renew (0|1), then per job: entry, token, running (0|1), step.
local group, consumer, renew = ARGV[1], ARGV[2], ARGV[3] == '1'
local answers = {}
for i = 4, #KEYS do
  local job, a = KEYS[i], 4 + (i - 4) * 4
  local entry, token, running, step = ARGV[a], ARGV[a + 1], ARGV[a + 2] == '1', ARGV[a + 3]
  local state = redis.call('HGET', job, 'state')
  if not state or TERMINAL[state] or redis.call('HGET', job, 'token') ~= token then
    -- Never renew for a zombie: XCLAIM would take the entry back from the worker that has it now.
    answers[#answers + 1] = 'lost'
  else
    if renew then
      redis.call('XCLAIM', STREAM, group, consumer, 0, entry, 'JUSTID')
    end
    if running then move(job, 'processing') end
    if redis.call('HGET', job, 'step') ~= step then redis.call('HSET', job, 'step', step) end
    answers[#answers + 1] = redis.call('HGET', job, 'cancel') == '1' and 'cancel' or 'ok'
  end
end
return answers
