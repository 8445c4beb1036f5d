-- Lists jobs whose deadline has passed and that no worker has started.
-- KEYS: 1 deadlines of jobs that wait for a first worker
-- ARGV: 1 most ids
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', redis.call('TIME')[1], 'LIMIT', 0, ARGV[1])
