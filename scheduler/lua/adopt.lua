-- adopt: make running ids known under the lease that holds their rows. Reconcile alone calls it.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   (priority token remaining_ms id)*
--        remaining_ms 0 or less = lapsed: the reaper takes it next; at most 1,000 ids
-- RETURN how many ids were adopted
--
-- Guards: an id that `live` has is left alone: what Redis says of it is newer.
--         No token, no entry: a lease always has an owner.
--         Every adopted id leaves `dlq`: never in both.
--         The first write may be refused: a full Redis takes nothing new.
local leases, live = KEYS[13], KEYS[14]

local ids = {}
for i = 4, #ARGV, 4 do
  ids[#ids + 1] = ARGV[i]
end
if #ids == 0 then
  return 0
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', live, unpack(ids))
redis.call('ZCARD', leases)
local owners, deadlines, revived = {}, {}, {}
for p = 1, 4 do
  redis.call('ZCARD', KEYS[8 + p])
  revived[p] = {}
end

local adopted, seen = 0, {}
for i, id in ipairs(ids) do
  local p, token, remaining = tonumber(ARGV[4 * i - 3]), ARGV[4 * i - 2], tonumber(ARGV[4 * i - 1])
  if not known[i] and not seen[id] and token ~= '' then
    seen[id] = true
    adopted = adopted + 1
    table.insert(owners, id)
    table.insert(owners, token)
    table.insert(deadlines, now + math.max(remaining, 0))
    table.insert(deadlines, id)
    table.insert(revived[p], id)
  end
end

if adopted > 0 then
  redis.call('HSET', live, unpack(owners))
  redis.call('ZADD', leases, unpack(deadlines))
  for p = 1, 4 do
    if #revived[p] > 0 then
      redis.call('ZREM', KEYS[8 + p], unpack(revived[p]))
    end
  end
end
return adopted
