-- How many jobs are ahead of a waiting one, and the mean work of a waiting job. args: id. {-1, 0} if it does not wait.
-- Within its own class exact for jobs of equal size and up to CALLERS_READ callers; the rest is extrapolated.
local CALLERS_READ = 200
local id = args.id
local f = read(id, 'state', 'model', 'class', 'caller')
if f[1] ~= 'queued' or not intact(id) then return {-1, '0'} end
local model, class, caller = f[2], f[3], f[4]
local ahead, waiting = 0, 0
for _, name in ipairs(PRIORITIES) do
  local size = redis.call('ZCARD', keys.waiting_since_zset(model, name))
  waiting = waiting + size
  if name == class then ahead = waiting - size end
end
local work = tonumber(redis.call('HGET', keys.counters_hash, 'work:' .. model) or '0')
local mean = math.max(1, work / waiting)
local rank = redis.call('ZRANK', keys.waiting_zset(model, class, caller), id)
local mine = tonumber(redis.call('ZSCORE', keys.callers_zset(model, class), caller))
if not rank or not mine then return {-1, '0'} end -- the record says that it waits, but no line holds it
local others = redis.call('ZRANGE', keys.callers_zset(model, class), 0, CALLERS_READ - 1, 'WITHSCORES')
local sum = 0
for i = 1, #others, 2 do
  if others[i] ~= caller then
    local lead = (mine - tonumber(others[i + 1])) / mean + rank
    -- Ties in virtual time are broken by name.
    local turns = lead == math.floor(lead) and lead + (others[i] < caller and 1 or 0) or math.ceil(lead)
    sum = sum + math.max(0, math.min(turns, redis.call('ZCARD', keys.waiting_zset(model, class, others[i]))))
  end
end
local callers = redis.call('ZCARD', keys.callers_zset(model, class))
if callers > CALLERS_READ then sum = math.floor(sum * callers / CALLERS_READ) end
local limit = redis.call('ZCARD', keys.waiting_since_zset(model, class)) - 1
return {ahead + math.min(rank + sum, limit), tostring(mean)}
