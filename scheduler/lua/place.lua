-- place: take ids from the lease that a token holds to where they belong. It is the ack, the release, the
-- drop after a refused claim and the reaper's move.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   (where token priority ms new_token count id{count})*
--        where    gone         forgotten
--                 head, tail   ready, before or after the others; the first id of a group comes out first
--                 retry        due in ms
--                 dead         a dead letter, from now on
--                 held         under new_token for ms
--        ms is rounded up and at least 50, so that no id comes back in a spin; at most 1,000 ids
-- RETURN how many ids were moved
--
-- Guards: an id moves only if `live` has it under this token: nobody takes another's entry away.
--         No token, no move: "" marks what nobody holds.
--         `held` needs a new token: an entry of `leases` always has an owner.
--         The first write is ZREM, which a full Redis allows: it must be able to drain.
local leases, live, wake = KEYS[13], KEYS[14], KEYS[16]

local groups, at = {}, 1
while at <= #ARGV do
  local where, token, p, new_token = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 4]
  local ms, last = tonumber(ARGV[at + 3]), at + 5 + tonumber(ARGV[at + 5])
  if where == 'head' or where == 'tail' then
    redis.call('LLEN', KEYS[p])
  elseif where == 'retry' then
    redis.call('ZCARD', KEYS[4 + p])
  elseif where == 'dead' then
    redis.call('ZCARD', KEYS[8 + p])
  elseif where ~= 'gone' and where ~= 'held' then
    return redis.error_reply('ERR place knows no ' .. where)
  end
  if token ~= '' and (where ~= 'held' or new_token ~= '') then
    groups[#groups + 1] = {
      where = where, token = token, priority = p, ms = math.max(math.ceil(ms), 50), new_token = new_token,
      ids = {unpack(ARGV, at + 6, last)},
    }
  end
  at = last + 1
end
redis.call('ZCARD', leases)
redis.call('HLEN', live)
local asleep = redis.call('LLEN', wake) == 0
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The ids of a group that its token does hold, each once.
local function mine(group)
  local owners, ids, seen = redis.call('HMGET', live, unpack(group.ids)), {}, {}
  for i, id in ipairs(group.ids) do
    if owners[i] == group.token and not seen[id] then
      seen[id] = true
      ids[#ids + 1] = id
    end
  end
  return ids
end

-- Every id with the same score, as ZADD wants them, or with the same token, as HSET does.
local function scored(ids, score)
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1], args[2 * i] = score, id
  end
  return unpack(args)
end
local function owned(ids, token)
  local args = {}
  for i, id in ipairs(ids) do
    args[2 * i - 1], args[2 * i] = id, token
  end
  return unpack(args)
end

local function reversed(ids)
  local args = {}
  for i = #ids, 1, -1 do
    args[#args + 1] = ids[i]
  end
  return unpack(args)
end

local moved, any_ready = 0, false
for _, group in ipairs(groups) do
  local ids, where, p = mine(group), group.where, group.priority
  if #ids > 0 then
    moved = moved + #ids
    redis.call('ZREM', leases, unpack(ids))
    if where == 'held' then
      redis.call('ZADD', leases, scored(ids, now + group.ms))
      redis.call('HSET', live, owned(ids, group.new_token))
    elseif where == 'gone' or where == 'dead' then
      redis.call('HDEL', live, unpack(ids))
      if where == 'dead' then
        redis.call('ZADD', KEYS[8 + p], scored(ids, now))
      end
    else
      redis.call('HSET', live, owned(ids, ''))
      if where == 'retry' then
        redis.call('ZADD', KEYS[4 + p], scored(ids, now + group.ms))
      elseif where == 'tail' then
        redis.call('RPUSH', KEYS[p], unpack(ids))
      else
        redis.call('LPUSH', KEYS[p], reversed(ids))
      end
      any_ready = any_ready or where ~= 'retry'
    end
  end
end
-- One token wakes one worker, which wakes the next one if it leaves something (lease): never all for one.
if any_ready and asleep then
  redis.call('RPUSH', wake, '1')
end
return moved
