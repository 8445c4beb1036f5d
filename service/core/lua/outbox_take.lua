-- Takes webhooks that are due, and counts an attempt for each.
-- KEYS: 1 outbox: entries by when they are due, 2 attempts by entry
-- ARGV: 1 most to take, 2 seconds after which one that was not removed is due again
-- Returns entry, number of this attempt, entry, ...
-- include heal
local now = tonumber(redis.call('TIME')[1])
local taken = {}
-- A removal first, so that it works on a full Redis as well (see job_common).
heal('HDEL', KEYS[2], '')
for _, id in ipairs(heal('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  if not string.find(id, '^[%w_-]+:?%a*$') then
    redis.call('ZREM', KEYS[1], id)  -- no job has such an id, and the client may not decode it
    redis.call('HDEL', KEYS[2], id)
  else
    redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), id)
    local attempt = redis.pcall('HINCRBY', KEYS[2], id, 1)
    if type(attempt) ~= 'number' then  -- a damaged count must not stop the others
      redis.call('HSET', KEYS[2], id, 1)
      attempt = 1
    end
    taken[#taken + 1] = id
    taken[#taken + 1] = attempt
  end
end
return taken
