-- census: is the index whole? If not (a key was evicted, deleted or overwritten), drop all of it, so that
-- reconcile builds it again from the rows. Constant time while it is whole.
--
-- KEYS   all keys of a shard: 1-4 q, 5-8 retry, 9-12 dlq (critical high default low),
--        13 leases, 14 live, 15 credit, 16 wake, 17 paused, 18 epoch
-- ARGV   none
-- RETURN 1 and the epoch (nil if absent) if it is whole, 0 if it was dropped
--
-- Guards: every id of `live` is in one place, so the sizes must agree.
--         A key of the wrong type is damage, not an error.
--         The epoch goes with the rest: its absence is what calls for the rebuild.
local leases, live, credit, wake, paused, epoch = unpack(KEYS, 13, 18)

local whole = true
local function size(command, key)
  local reply = redis.pcall(command, key)
  whole = whole and type(reply) == 'number'
  return whole and reply or 0
end

local placed = size('ZCARD', leases)
for p = 1, 4 do
  placed = placed + size('LLEN', KEYS[p]) + size('ZCARD', KEYS[4 + p])
  size('ZCARD', KEYS[8 + p])
end
whole = size('HLEN', live) == placed and whole
size('HLEN', credit)
size('LLEN', wake)
size('SCARD', paused)
local current = redis.pcall('GET', epoch)
if whole and type(current) ~= 'table' then
  return {1, current}
end
redis.call('UNLINK', unpack(KEYS))
return {0}
