-- lease: pop up to n ready ids by the fair choice and put them under one token until their deadline.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   n token vis_ms mode max_wait_ms weight1 weight2 weight3 weight4
--        n up to 1,000; token never used before; mode weighted or strict; max_wait_ms 0 = no bound
--        n = 0 takes nothing, and wakes another worker if there is work
-- RETURN the ids, in the order of picking
--
-- The choice is that of fairness.py, and a test holds the two together. `credit` keeps its state: c1-c4 what
-- each list has earned, s1-s4 since when it waits, in milliseconds; absent = 0. `paused` holds the names of
-- priorities that are passed over as if they were empty.
--
-- Guards: nothing ready, no write: an idle fleet leaves no trace in the append-only file.
--         No token, no lease: an entry of `leases` always has an owner.
--         The first write is the pop, which a full Redis allows: it must be able to drain.
local leases, live, credit, wake, paused = KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17]
local n, token, vis = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local strict, max_wait = ARGV[4] == 'strict', tonumber(ARGV[5])

local left, waiting = {}, 0
for p = 1, 4 do
  left[p] = redis.call('LLEN', KEYS[p])
  waiting = waiting + left[p]
end
if waiting == 0 then
  return {}
end
local skip = redis.call('SMISMEMBER', paused, 'critical', 'high', 'default', 'low')
for p = 1, 4 do
  if skip[p] == 1 then
    waiting = waiting - left[p]
    left[p] = 0
  end
end
n = math.min(n, waiting)
if n <= 0 then
  if waiting > 0 and redis.call('LLEN', wake) == 0 then
    redis.call('RPUSH', wake, '1')
  end
  return {}
end
if token == '' then
  return redis.error_reply('ERR a lease needs a token')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local asleep = redis.call('LLEN', wake) == 0
redis.call('ZCARD', leases)
redis.call('HLEN', live)
local state = redis.call('HMGET', credit, 'c1', 'c2', 'c3', 'c4', 's1', 's2', 's3', 's4')
local earned, served, weights = {}, {}, {}
for p = 1, 4 do
  earned[p] = left[p] > 0 and tonumber(state[p] or 0) or 0
  local since = tonumber(state[4 + p] or 0)
  served[p] = since > 0 and math.min(since, now) or now
  weights[p] = tonumber(ARGV[5 + p])
end

local picks, counts = {}, {0, 0, 0, 0}
local function pick(p)
  picks[#picks + 1] = p
  counts[p] = counts[p] + 1
  left[p] = left[p] - 1
  if left[p] == 0 then
    earned[p] = 0
  end
end

-- What has waited beyond the bound comes first, the longest wait before the others, one pick each.
while max_wait > 0 and #picks < n do
  local oldest
  for p = 1, 4 do
    if left[p] > 0 and now - served[p] > max_wait and (not oldest or served[p] < served[oldest]) then
      oldest = p
    end
  end
  if not oldest then
    break
  end
  pick(oldest)
  served[oldest] = now
end

-- Then by rank, or by weight as long as there is a choice.
while #picks < n do
  local ready, total = {}, 0
  for p = 1, 4 do
    if left[p] > 0 then
      ready[#ready + 1] = p
      total = total + weights[p]
    end
  end
  if strict or #ready == 1 then
    for _ = 1, math.min(left[ready[1]], n - #picks) do
      pick(ready[1])
    end
  else
    local richest
    repeat
      richest = ready[1]
      for _, p in ipairs(ready) do
        earned[p] = earned[p] + weights[p]
        if earned[p] > earned[richest] then
          richest = p
        end
      end
      earned[richest] = earned[richest] - total
      pick(richest)
    until #picks == n or left[richest] == 0
  end
end

local popped = {}
for p = 1, 4 do
  if counts[p] > 0 then
    popped[p] = redis.call('LPOP', KEYS[p], counts[p])
    served[p] = now
  end
end
local ids, deadlines, owners, taken = {}, {}, {}, {0, 0, 0, 0}
for i, p in ipairs(picks) do
  taken[p] = taken[p] + 1
  ids[i] = popped[p][taken[p]]
  deadlines[2 * i - 1], deadlines[2 * i] = now + vis, ids[i]
  owners[2 * i - 1], owners[2 * i] = ids[i], token
end
redis.call('ZADD', leases, unpack(deadlines))
redis.call('HSET', live, unpack(owners))

if n < waiting then
  for p = 1, 4 do
    served[p] = left[p] > 0 and served[p] or 0
  end
  redis.call('HSET', credit, 'c1', earned[1], 'c2', earned[2], 'c3', earned[3], 'c4', earned[4],
    's1', served[1], 's2', served[2], 's3', served[3], 's4', served[4])
  -- The chain: whoever leaves something wakes the next worker, unless a token waits for one already.
  if asleep then
    redis.call('RPUSH', wake, '1')
  end
else
  redis.call('DEL', credit)  -- all lists are empty, and so is their state
end
return ids
