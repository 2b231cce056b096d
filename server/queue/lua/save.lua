-- Save a job's progress for its next attempt. args: id, token, ttl_s, fields, whose values follow as ARGV[2] and
-- on. A finished image replaces its snapshot.
if not read_leased(args.id, args.token) then return 'fenced' end
local resume = keys.resume_hash(args.id)
for i, field in ipairs(args.fields) do
  redis.call('HSET', resume, field, ARGV[i + 1])
  local done = string.match(field, '^output:(%d+)$')
  if done then redis.call('HDEL', resume, 'snapshot:' .. done) end
end
redis.call('EXPIRE', resume, args.ttl_s)
return 'ok'
