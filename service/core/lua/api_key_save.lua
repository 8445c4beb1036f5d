-- Stores the record of an API key.
-- KEYS: 1 records of all keys by their ids, 2 note that all were revoked
-- ARGV: 1 id of the key, 2 record (JSON)
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
