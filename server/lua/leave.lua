-- Remove a worker's consumer, and those of workers that died long ago. KEYS: 1 stream. ARGV: 1 group, 2 consumer, 3 dead_ms.
-- Looking and removing in one step: deleting a consumer drops its pending entries, so none may arrive in between.
local group, consumer, dead_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', STREAM, group)) do
  local info = {}
  for i = 1, #flat, 2 do info[flat[i]] = flat[i + 1] end
  if info.pending == 0 and (info.name == consumer or info.idle > dead_ms) then
    redis.call('XGROUP', 'DELCONSUMER', STREAM, group, info.name)
  end
end
