-- set_epoch: compare and set the epoch, by which reconcile tells whether Redis has kept its memory.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   expected new
--        "" = absent
-- RETURN 1 if it was set, 0 if the epoch was another one
--
-- Guards: of two passes that end at once, one sets it.
local epoch = KEYS[18]

if (redis.call('GET', epoch) or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', epoch, ARGV[2])
return 1
