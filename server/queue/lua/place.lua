-- How many jobs are ahead of a waiting one, and the mean work of a waiting job. ARGV: 1 id. {-1, 0} if it does not wait.
-- Exact for its own class up to jobs of unlike size and beyond LOOKED_AT callers, where the rest is extrapolated.
local LOOKED_AT = 200
local id = ARGV[1]
local f = read(id, 'state', 'model', 'class', 'caller')
if f[1] ~= 'queued' then return {-1, '0'} end
local model, class, caller = f[2], f[3], f[4]
local ahead, waiting = 0, 0
for i, name in ipairs(CLASSES) do
  local size = redis.call('ZCARD', key('since', model, name))
  waiting = waiting + size
  if name == class then
    ahead = waiting - size
  end
end
local mean = math.max(1, tonumber(redis.call('HGET', COUNTERS, 'work:' .. model) or '0') / waiting)
local rank = redis.call('ZRANK', key('line', model, class, caller), id)
local mine = tonumber(redis.call('ZSCORE', key('ring', model, class), caller))
local others = redis.call('ZRANGE', key('ring', model, class), 0, LOOKED_AT - 1, 'WITHSCORES')
local sum = 0
for i = 1, #others, 2 do
  if others[i] ~= caller then
    local lead = (mine - tonumber(others[i + 1])) / mean + rank
    -- Equal virtual times go by name.
    local turns = lead == math.floor(lead) and lead + (others[i] < caller and 1 or 0) or math.ceil(lead)
    sum = sum + math.max(0, math.min(turns, redis.call('ZCARD', key('line', model, class, others[i]))))
  end
end
local callers = redis.call('ZCARD', key('ring', model, class))
if callers > LOOKED_AT then sum = math.floor(sum * callers / LOOKED_AT) end
local limit = redis.call('ZCARD', key('since', model, class)) - 1
return {ahead + math.min(rank + sum, limit), tostring(mean)}
