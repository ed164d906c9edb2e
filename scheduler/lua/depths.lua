-- depths: how many ids the shard holds, by collection and priority.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   none
-- RETURN 13 numbers: q, retry and dlq, four each by priority, and leases
--
-- Guards: read only.
local sizes = {}
for p = 1, 4 do
  sizes[p] = redis.call('LLEN', KEYS[p])
  sizes[4 + p] = redis.call('ZCARD', KEYS[4 + p])
  sizes[8 + p] = redis.call('ZCARD', KEYS[8 + p])
end
sizes[13] = redis.call('ZCARD', KEYS[13])
return sizes
