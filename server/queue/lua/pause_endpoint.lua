-- Leave a failing endpoint alone for a while. args: owner, endpoint, until. Nothing if a delivery has succeeded meanwhile,
-- which has removed its count of failures.
local endpoint = keys.webhook_endpoint_hash(args.owner, args.endpoint)
if redis.call('EXISTS', endpoint) == 1 then redis.call('HSET', endpoint, 'until', time_text(args['until'])) end
