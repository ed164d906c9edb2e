-- dlq_add: show ids as dead letters, because their rows are dead.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   (priority age_ms id)*
--        age_ms since the death; at most 1,000 ids
-- RETURN how many ids were added
--
-- Guards: an id that `live` has is not added: the row was read before, and is on its way again.
--         An id that is there keeps its time.
--         The first write may be refused: a full Redis takes nothing new.
local live = KEYS[14]

local ids = {}
for i = 3, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
end
if #ids == 0 then
  return 0
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', live, unpack(ids))
local dead = {}
for p = 1, 4 do
  redis.call('ZCARD', KEYS[8 + p])
  dead[p] = {}
end
for i, id in ipairs(ids) do
  if not known[i] then
    local p, age = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
    table.insert(dead[p], now - math.max(age, 0))
    table.insert(dead[p], id)
  end
end

local added = 0
for p = 1, 4 do
  if #dead[p] > 0 then
    added = added + redis.call('ZADD', KEYS[8 + p], 'NX', unpack(dead[p]))
  end
end
return added
