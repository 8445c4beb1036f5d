-- Marks an Idempotency-Key as being processed, or tells what it stands for.
-- KEYS: 1 the key's mark
-- ARGV: 1 token of this request, 2 fingerprint of its body, 3 seconds until the mark ends by itself
-- Returns 'begun', 'mismatch' (another body), 'pending' (another request has it), or the job's id.
-- include heal
local known = heal('HMGET', KEYS[1], 'fingerprint', 'job', 'token')
if known[1] and known[1] ~= ARGV[2] then return 'mismatch' end
if known[2] then return known[2] end
if known[1] and known[3] ~= ARGV[1] then return 'pending' end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'fingerprint', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 'begun'
