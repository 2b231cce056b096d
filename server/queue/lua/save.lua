-- Keep what is done of a job, for whoever goes on after us. ARGV: 1 id, 2 token, 3 ttl_s, then pairs of field and value.
-- A snapshot that became a finished image is dropped with it.
local id, token, ttl_s = ARGV[1], ARGV[2], tonumber(ARGV[3])
local f = read(id, 'state', 'token')
if not f[1] or TERMINAL[f[1]] or f[2] ~= token then return 'fenced' end
local resume = key('resume', id)
for a = 4, #ARGV, 2 do
  redis.call('HSET', resume, ARGV[a], ARGV[a + 1])
  local done = string.match(ARGV[a], '^output:(%d+)$')
  if done then redis.call('HDEL', resume, 'snapshot:' .. done) end
end
redis.call('EXPIRE', resume, ttl_s)
return 'ok'
