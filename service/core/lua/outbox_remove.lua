-- Removes a webhook from the outbox. (Not a transaction: see lease_end.)
-- KEYS: 1 outbox: entries by when they are due, 2 attempts by entry
-- ARGV: 1 entry
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
