-- May this caller make one more request? ARGV: 1 caller, 2 requests a minute. The generic cell rate algorithm (as in
-- ITU-T I.371): one time per caller, when his allowance will be whole again. Shared by all gateways, on Redis' clock.
-- Returns {allowed (0|1), requests left, seconds until all are back, seconds until the next is}.
local name, per_minute = key('rate', ARGV[1]), tonumber(ARGV[2])
local WINDOW_S = 60
local each, now = WINDOW_S / per_minute, clock()
local whole = math.max(tonumber(redis.call('GET', name) or '0'), now)
local allowed = whole + each - now <= WINDOW_S + 1e-6
if allowed then
  whole = whole + each
  redis.call('SET', name, text(whole), 'PX', math.ceil((whole - now) * 1000))
end
-- A hundredth of a request for rounding: times are kept to a microsecond.
local left = math.max(0, math.floor((WINDOW_S - (whole - now)) / each + 0.01))
return {allowed and 1 or 0, left, text(whole - now), text(math.max(0, whole + each - now - WINDOW_S))}
