-- Removes a webhook from the outbox. (Not a transaction: see lease_end.)
-- KEYS: 1 outbox: entries by when they are due, 2 attempts by entry
-- ARGV: 1 entry
-- include heal
heal('ZREM', KEYS[1], ARGV[1])
heal('HDEL', KEYS[2], ARGV[1])
