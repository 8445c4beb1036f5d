-- Stores the record of a file, and lists it among its caller's files.
-- KEYS: 1 the file's record, 2 the caller's files by when they were uploaded
-- ARGV: 1 file id, 2 record (JSON), 3 when it was uploaded, 4 seconds that it is kept, 5 most files
-- Returns the ids of the files beyond the most, oldest first.
-- include heal
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[4])
heal('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return redis.call('ZRANGE', KEYS[2], 0, -tonumber(ARGV[5]) - 1)
