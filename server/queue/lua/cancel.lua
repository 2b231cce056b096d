-- Cancel by id, safe to repeat. args: id, ttl_s. Returns the state after the call.
return cancel(args.id, args.ttl_s) or 'unknown'
