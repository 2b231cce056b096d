-- Move the cursor of a batch past a line that became a job, or that was rejected: then args has its error. args: id, line,
-- error. Never back, and not once the batch is over: a gateway that was frozen meanwhile works on lines that another has
-- done. Safe to repeat. Returns 1 if the next line may follow, or 0.
local batch = keys.batch_hash(args.id)
local f = redis.call('HMGET', batch, 'status', 'cursor')
if not f[1] or BATCH_OVER[f[1]] then return 0 end
if args.error and redis.call('HSETNX', keys.batch_errors(args.id), args.line, args.error) == 1 then
  redis.call('HINCRBY', batch, 'rejected', 1)
end
if args.line >= read_number(f[2]) then redis.call('HSET', batch, 'cursor', args.line + 1) end
return f[1] == 'in_progress' and 1 or 0
