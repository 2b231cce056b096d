-- Publish a model, and forget those beyond the bounds that nothing needs any more. args: id, info (JSON text), optionally
-- replaces (the id that a reload gave up for it), live_s and away_s (a worker seen within them runs, or may be restarting),
-- and the bounds max_models, max_replaced and max_served.
redis.call('HSET', keys.models_hash, args.id, args.info)
redis.call('HDEL', keys.replaced_hash, args.id)
if args.replaces then redis.call('HSET', keys.replaced_hash, args.replaces, args.id) end

redis.call('ZREMRANGEBYRANK', keys.served_zset, 0, -args.max_served - 1)
local served = {} -- when each model was served last
local pairs_of = redis.call('ZRANGE', keys.served_zset, 0, -1, 'WITHSCORES')
for i = 1, #pairs_of, 2 do served[string.match(pairs_of[i], '[^\n]*$')] = tonumber(pairs_of[i + 1]) end

local function longest_unserved_first(hash)
  local ids = redis.call('HKEYS', hash)
  table.sort(ids, function(a, b)
    local at, bt = served[a] or 0, served[b] or 0
    return at < bt or (at == bt and a < b)
  end)
  return ids
end

local alive = {} -- models of workers, also of a version that does not note when it served them
for _, worker in ipairs(redis.call('ZRANGE', keys.workers_zset, 0, -1)) do
  alive[redis.call('GET', keys.worker_model(worker)) or ''] = true
end

local function is_needed(id)
  if id == args.id or alive[id] or (served[id] or 0) > clock() - args.live_s then return true end
  if redis.call('ZCARD', keys.leases_zset(id)) > 0 then return true end
  for _, class in ipairs(PRIORITIES) do
    if redis.call('ZCARD', keys.waiting_since_zset(id, class)) > 0 then return true end
  end
  return false
end

-- What a reload has replaced everywhere is on no list; of the others, which a worker may be started for, many may stay.
local excess = redis.call('HLEN', keys.models_hash) - args.max_models
for _, id in ipairs(longest_unserved_first(keys.models_hash)) do
  local gone = redis.call('HEXISTS', keys.replaced_hash, id) == 1 and (served[id] or 0) < clock() - args.away_s
  if (gone or excess > 0) and not is_needed(id) then
    redis.call('HDEL', keys.models_hash, id)
    excess = excess - 1
  end
end
excess = redis.call('HLEN', keys.replaced_hash) - args.max_replaced
for _, id in ipairs(longest_unserved_first(keys.replaced_hash)) do
  if excess <= 0 then break end
  if id ~= args.replaces then
    redis.call('HDEL', keys.replaced_hash, id)
    excess = excess - 1
  end
end
