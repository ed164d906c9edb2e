-- dlq_del: take ids out of the dead letters, because their rows are dead no more.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   (priority id)*
--        at most 1,000 ids
-- RETURN how many ids were taken out
--
-- Guards: touches `dlq` alone: where the id is otherwise is not its business.
--         The first write is ZREM, which a full Redis allows: it must be able to drain.
local revived = {}
for p = 1, 4 do
  redis.call('ZCARD', KEYS[8 + p])
  revived[p] = {}
end
for i = 2, #ARGV, 2 do
  table.insert(revived[tonumber(ARGV[i - 1])], ARGV[i])
end

local removed = 0
for p = 1, 4 do
  if #revived[p] > 0 then
    removed = removed + redis.call('ZREM', KEYS[8 + p], unpack(revived[p]))
  end
end
return removed
