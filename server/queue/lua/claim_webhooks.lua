-- Claim due webhooks: each goes to one of the gateways. args: count, visibility_timeout_s until one is due again if its
-- gateway dies, owner_slots and endpoint_slots, the most that this gateway delivers at a time of one owner and to one of
-- their endpoints, and running, a list of the {owner, endpoint} that it delivers now. Returns lists of
-- {id, owner, endpoint, prepare}: with prepare 1 the message is to be made and kept, for an attempt later.
-- Owners take turns, and nothing of one owner is in the way of another's: not even 10,000 due webhooks to dead endpoints.
local OWNERS_READ, READ, AGAIN_S, PREPARED = 256, 100, 1, 16 -- the last: messages of one owner, made at a time
local now, found, left = clock(), {}, args.count
local by_owner, by_endpoint, prepared = {}, {}, 0

local function occupy(owner, endpoint)
  local both = owner .. ' ' .. endpoint
  by_owner[owner], by_endpoint[both] = (by_owner[owner] or 0) + 1, (by_endpoint[both] or 0) + 1
end

local function claim(owner, id)
  local stored = redis.call('HMGET', keys.webhook_hash(id), 'endpoint', 'message')
  local endpoint = stored[1] or '' -- a lost record is claimed to be removed
  local failing = redis.call('HMGET', keys.webhook_endpoint_hash(owner, endpoint), 'failures', 'until')
  local paused_until = tonumber(failing[2] or '') or 0
  local slots = failing[1] and 1 or args.endpoint_slots -- one that failed gets one attempt at a time
  local due = now + args.visibility_timeout_s
  local busy = (by_endpoint[owner .. ' ' .. endpoint] or 0) >= slots
  if paused_until > now or busy then
    due = paused_until > now and paused_until or now + AGAIN_S
    -- The job of the message may be deleted before the endpoint is back.
    if not stored[2] then
      found[#found + 1] = {id, owner, endpoint, 1}
      prepared = prepared + 1
    end
  else
    occupy(owner, endpoint)
    found[#found + 1] = {id, owner, endpoint, 0}
  end
  redis.call('ZADD', keys.webhooks_zset(owner), time_text(due), id)
end

for _, each in ipairs(args.running) do occupy(each[1], each[2]) end
for _, owner in ipairs(redis.call('ZRANGEBYSCORE', keys.webhook_owners_zset, '-inf', time_text(now), 'LIMIT', 0,
  OWNERS_READ)) do
  local hooks = keys.webhooks_zset(owner)
  prepared = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', hooks, '-inf', time_text(now), 'LIMIT', 0, READ)) do
    if (by_owner[owner] or 0) >= args.owner_slots or prepared >= PREPARED or #found >= left then break end
    claim(owner, id)
  end
  local first = redis.call('ZRANGE', hooks, 0, 0, 'WITHSCORES')
  if not first[1] then
    redis.call('ZREM', keys.webhook_owners_zset, owner)
  else
    local busy = (by_owner[owner] or 0) >= args.owner_slots
    local next = math.max(tonumber(first[2]), busy and now + AGAIN_S / 4 or now + 0.001) -- behind the other owners
    redis.call('ZADD', keys.webhook_owners_zset, time_text(next), owner)
  end
  if #found >= left then break end
end
return found
