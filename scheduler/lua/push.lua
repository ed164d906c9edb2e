-- push: make ids known and ready, or due later. Enqueue, redrive and reconcile may repeat it freely.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   (priority delay_ms id)*
--        priority 1-4; delay_ms 0 or less = ready now; at most 1,000 ids
-- RETURN how many ids were added
--
-- Guards: an id that `live` has is not added, so that it is in one place only.
--         Every id leaves `dlq`, added or not: a redriven task is no dead letter.
--         The first write may be refused: a full Redis takes nothing new.
local live, wake = KEYS[14], KEYS[16]

local ids = {}
for i = 3, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
end
if #ids == 0 then
  return 0
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local asleep = redis.call('LLEN', wake) == 0
local known = redis.call('HMGET', live, unpack(ids))
local entries, ready, later, revived = {}, {}, {}, {}
for p = 1, 4 do
  redis.call('LLEN', KEYS[p])
  redis.call('ZCARD', KEYS[4 + p])
  redis.call('ZCARD', KEYS[8 + p])
  ready[p], later[p], revived[p] = {}, {}, {}
end

local added, seen = 0, {}
for i, id in ipairs(ids) do
  local p, delay = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
  table.insert(revived[p], id)
  if not known[i] and not seen[id] then
    seen[id] = true
    added = added + 1
    table.insert(entries, id)
    table.insert(entries, '')
    if delay > 0 then
      table.insert(later[p], now + delay)
      table.insert(later[p], id)
    else
      table.insert(ready[p], id)
    end
  end
end

if added > 0 then
  redis.call('HSET', live, unpack(entries))
end
local any_ready = false
for p = 1, 4 do
  if #ready[p] > 0 then
    redis.call('RPUSH', KEYS[p], unpack(ready[p]))
    any_ready = true
  end
  if #later[p] > 0 then
    redis.call('ZADD', KEYS[4 + p], unpack(later[p]))
  end
  if #revived[p] > 0 then
    redis.call('ZREM', KEYS[8 + p], unpack(revived[p]))
  end
end
-- One token wakes one worker, which wakes the next one if it leaves something (lease): never all for one.
if any_ready and asleep then
  redis.call('RPUSH', wake, '1')
end
return added
