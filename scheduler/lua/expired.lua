-- expired: the leased ids whose deadline has passed, oldest first, each with the token that holds it.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   n
--        most ids to look at, up to 1,000
-- RETURN id, token, id, token, …
--
-- Guards: what has an owner is named only; the reaper moves it by `place`, after it has asked Postgres.
--         An entry that `live` does not have under a token is taken out: nobody could ever move it, and while
--         it stays it may make up for a lost id in the count of the census.
--         The only write is ZREM, which a full Redis allows: it must be able to drain.
local leases, live = KEYS[13], KEYS[14]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, ARGV[1])
if #ids == 0 then
  return {}
end
local owners, owned, ownerless = redis.call('HMGET', live, unpack(ids)), {}, {}
for i, id in ipairs(ids) do
  if owners[i] and owners[i] ~= '' then
    owned[#owned + 1] = id
    owned[#owned + 1] = owners[i]
  else
    ownerless[#ownerless + 1] = id
  end
end
if #ownerless > 0 then
  redis.call('ZREM', leases, unpack(ownerless))
end
return owned
