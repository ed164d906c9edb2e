-- nudge: make ids due now that are overdue by their rows, wherever they wait. Always safe: being early costs
-- one look.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   (priority id)*
--        at most 1,000 ids
-- RETURN how many ids were made due
--
-- Guards: only an id that is in `retry` or `leases` is touched (XX), and only to be earlier (LT): one that is
--         due already keeps its place in the order.
local leases = KEYS[13]

redis.call('ZCARD', leases)
for p = 1, 4 do
  redis.call('ZCARD', KEYS[4 + p])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local nudged = 0
for i = 2, #ARGV, 2 do
  for _, key in ipairs({KEYS[4 + tonumber(ARGV[i - 1])], leases}) do
    nudged = nudged + redis.call('ZADD', key, 'XX', 'LT', 'CH', now, ARGV[i])
  end
end
return nudged
