-- Frees an Idempotency-Key whose request made no job.
-- KEYS: 1 the key's mark
-- ARGV: 1 token of the request
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] and redis.call('HEXISTS', KEYS[1], 'job') == 0
then redis.call('DEL', KEYS[1]) end
