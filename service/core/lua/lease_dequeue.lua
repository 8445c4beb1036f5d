-- Moves the next id to the dequeued jobs without waiting for one. Unlike BLMOVE it works on a full
-- Redis, since it begins with a removal (see job_common).
-- KEYS: 1 waiting jobs, 2 dequeued jobs
-- Returns the id, nil where none waits.
-- include heal
heal('LREM', KEYS[2], 1, '')
return redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
