-- forget: drop cancelled ids that wait in `retry`.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   (priority id)*
--        at most 1,000 ids
-- RETURN how many ids were dropped
--
-- Guards: only what ZREM took out of `retry` is forgotten. An id in `q` or `leases` stays: it leaves by a
--         refused claim or by the reaper, and no list is searched for it.
local live = KEYS[14]

redis.call('HLEN', live)
for p = 1, 4 do
  redis.call('ZCARD', KEYS[4 + p])
end
local dropped = {}
for i = 2, #ARGV, 2 do
  if redis.call('ZREM', KEYS[4 + tonumber(ARGV[i - 1])], ARGV[i]) == 1 then
    dropped[#dropped + 1] = ARGV[i]
  end
end
if #dropped > 0 then
  redis.call('HDEL', live, unpack(dropped))
end
return #dropped
