-- Reads an embedding and notes its use.
-- KEYS: 1 embeddings (a hash by fingerprint), 2 fingerprints by their last use, 3 total bytes
-- ARGV: 1 fingerprint, 2 seconds kept after the last use
-- Returns the bytes, nil where there are none.
-- include heal
local found = heal('HGET', KEYS[1], ARGV[1])
if found then
  heal('ZADD', KEYS[2], 'XX', redis.call('TIME')[1], ARGV[1])
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
end
return found
