-- Apply a caller's rate limit. args: caller, per_minute. The generic cell rate algorithm (as in ITU-T I.371):
-- one time per caller, when their allowance will be full again. Shared by all gateways, on Redis' clock.
-- Returns {allowed (0|1), requests left, seconds until all are back, seconds until the next is}.
local name = keys.rate_limit(args.caller)
local WINDOW_S = 60
local each, now = WINDOW_S / args.per_minute, clock()
local whole = math.max(tonumber(redis.call('GET', name) or '0'), now)
whole = math.min(whole, now + WINDOW_S) -- later only if Redis' clock was set back
local allowed = whole + each - now <= WINDOW_S + 1e-6
if allowed then
  whole = whole + each
  redis.call('SET', name, time_text(whole), 'PX', math.ceil((whole - now) * 1000))
end
-- A hundredth of a request for rounding: times are kept to a microsecond.
local left = allowed and math.max(0, math.floor((WINDOW_S - (whole - now)) / each + 0.01)) or 0
return {allowed and 1 or 0, left, time_text(whole - now), time_text(math.max(0, whole + each - now - WINDOW_S))}
