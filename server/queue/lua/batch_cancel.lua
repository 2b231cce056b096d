-- Cancel the lines of a batch from `first` to `last` that have not ended. args: id, first, last, ttl_s, settles (all lines
-- before `first` have ended: the batch then keeps how far that is true). Returns 1 if one of these still runs, or 0. Safe
-- to repeat.
local batch, open = keys.batch_hash(args.id), nil
for number = args.first, args.last do
  local id = string.format('%s_%d', args.id, number)
  local state = cancel(id, args.ttl_s)
  -- A damaged record can neither be canceled nor end; the batch does not wait for it.
  if state and not TERMINAL[state] and not open and intact(id) then open = number end
end
if args.settles and redis.call('HEXISTS', batch, 'status') == 1 then
  redis.call('HSET', batch, 'settled', open or args.last)
end
return open and 1 or 0
