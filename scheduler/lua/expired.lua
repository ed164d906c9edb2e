-- expired: the leased ids whose deadline has passed, oldest first, each with the token that holds it.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   n
--        most ids to name, up to 1,000
-- RETURN id, token, id, token, …
--
-- Guards: read only; the reaper moves them by `place`, after it has asked Postgres.
--         An id that `live` does not have under a token is left out: census deals with damage.
local leases, live = KEYS[13], KEYS[14]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, ARGV[1])
if #ids == 0 then
  return {}
end
local owners, found = redis.call('HMGET', live, unpack(ids)), {}
for i, id in ipairs(ids) do
  if owners[i] and owners[i] ~= '' then
    found[#found + 1] = id
    found[#found + 1] = owners[i]
  end
end
return found
