-- End a job, once. args: id, token, state, outputs, error and metrics (JSON texts, '' for none), ttl_s, steps,
-- result_ttl_s, result_bytes (of all images), checkpoint (hash of the weights), stored ({token, index} of each image whose
-- file is stored already), indices of the images whose files are not and follow as ARGV[2] and up, alone (the only one is
-- small enough for a message). One round trip and one sync less than storing them
-- separately. Only this script makes files visible: the record names their tokens. Returns the state that the job has
-- now, 'fenced', or 'incomplete' if a stored file is gone, as after a failover to a replica that never got it: then
-- nothing has changed.
local id, state, outputs, error = args.id, args.state, args.outputs, args.error
local f = read(id, 'state', 'token', 'cancel_requested', 'error', 'step', 'cache_key', 'cache_s', 'owner')
if not f[1] or tonumber(f[2]) ~= args.token then
  count('fenced')
  return 'fenced'
end
if TERMINAL[f[1]] then return f[1] end -- our own finish, repeated after a lost reply
if f[3] == '1' then
  -- The caller was told that the job is being canceled, so that is how it ends.
  state, outputs, error = 'canceled', '', f[4] or ''
end
if state == 'succeeded' then
  for _, file in ipairs(args.stored) do
    -- From the end of the job on: the first image of a long one would expire before its record.
    local image = keys.result_bytes(id, file[1], file[2])
    if redis.call('EXPIRE', image, args.result_ttl_s) == 0 then return 'incomplete' end
  end
end
if state == 'succeeded' then
  for i, index in ipairs(args.indices) do
    redis.call('SET', keys.result_bytes(id, args.token, index), ARGV[i + 1], 'EX', args.result_ttl_s)
  end
end
if state == 'failed' then dead_letter(id, error) end
local succeeded = state == 'succeeded'
local result = succeeded and {bytes = args.result_bytes, file = args.alone and ARGV[2]}
local expires_at = finish(id, state, args.ttl_s, result or nil, 'outputs', outputs, 'error', error,
  'metrics', args.metrics, 'step', succeeded and args.steps or f[5] or 0)
if succeeded and f[6] and args.checkpoint ~= '' then -- the weights that generated it, not those that its caller expected
  local seconds = math.floor(math.min(tonumber(f[7] or '0'), expires_at - clock()))
  if seconds > 0 then redis.call('SET', keys.result_cache(f[8] or '', f[6], args.checkpoint), id, 'EX', seconds) end
end
return state
