-- Stores an embedding and removes those used longest ago, so that all together keep to a limit.
-- KEYS: 1 embeddings (a hash by fingerprint), 2 fingerprints by their last use, 3 total bytes
-- ARGV: 1 fingerprint, 2 bytes, 3 seconds kept after the last use, 4 most bytes of all together
-- include heal
local fingerprint, data, seconds, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = tonumber(redis.call('TIME')[1])
-- The sizes cannot be told from a damaged total: the cache begins anew.
local total = redis.pcall('GET', KEYS[3])
if total and not (type(total) == 'string' and string.find(total, '^%d+$') and #total < 16) then
  redis.call('DEL', unpack(KEYS))
end
local function remove(name)
  local size = heal('HSTRLEN', KEYS[1], name)
  redis.call('HDEL', KEYS[1], name)
  heal('ZREM', KEYS[2], name)
  if size > 0 then redis.call('DECRBY', KEYS[3], size) end
end
remove(fingerprint)
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - seconds)) do
  remove(name)
end
local size = #data
if size > most then return end
while tonumber(redis.call('GET', KEYS[3]) or 0) + size > most do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then
    redis.call('SET', KEYS[3], 0)
    break
  end
  remove(oldest)
end
redis.call('HSET', KEYS[1], fingerprint, data)
redis.call('ZADD', KEYS[2], now, fingerprint)
redis.call('INCRBY', KEYS[3], size)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, seconds) end
