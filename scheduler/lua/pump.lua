-- pump: move the ids that are due from `retry` to the end of their list. Any number of pumps may run.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   n
--        most ids to move of each priority, up to 1,000
-- RETURN how many ids were moved
--
-- Guards: found, taken and pushed in one script: nothing is lost between, nothing pushed twice.
--         The first write is ZREM, which a full Redis allows: it must be able to drain.
local wake = KEYS[16]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local asleep = redis.call('LLEN', wake) == 0
local due = {}
for p = 1, 4 do
  redis.call('LLEN', KEYS[p])
  due[p] = redis.call('ZRANGEBYSCORE', KEYS[4 + p], '-inf', now, 'LIMIT', 0, ARGV[1])
end

local moved = 0
for p = 1, 4 do
  if #due[p] > 0 then
    redis.call('ZREM', KEYS[4 + p], unpack(due[p]))
    redis.call('RPUSH', KEYS[p], unpack(due[p]))
    moved = moved + #due[p]
  end
end
-- One token wakes one worker, which wakes the next one if it leaves something (lease): never all for one.
if moved > 0 and asleep then
  redis.call('RPUSH', wake, '1')
end
return moved
