-- Reads the secrets that sign URLs; makes a new one when the newest is old, and removes expired ones.
-- KEYS: 1 secrets: a hash of "CREATED SECRET" by id
-- ARGV: 1 id and 2 secret to store if one is needed, 3 seconds until the next one is made,
--       4 seconds until one is removed
-- Returns id, secret, id, secret, ..., the newest first.
-- include heal
local now = tonumber(redis.call('TIME')[1])
local found, newest = {}, nil
local all = heal('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local created, secret = string.match(all[at + 1], '^(%d+) (%x+)$')
  created = tonumber(created)
  -- One that is damaged goes as well: of another length, or of a time that is not near.
  if not created or math.abs(now - created) > tonumber(ARGV[4]) or #secret ~= #ARGV[2] then
    redis.call('HDEL', KEYS[1], all[at])
  else
    found[#found + 1] = {all[at], secret, created}
    if not newest or created > newest then newest = created end
  end
end
if not newest or now - newest > tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2])
  found[#found + 1] = {ARGV[1], ARGV[2], now}
end
table.sort(found, function(a, b) return a[3] > b[3] or (a[3] == b[3] and a[1] > b[1]) end)
local answer = {}
for _, one in ipairs(found) do
  answer[#answer + 1] = one[1]
  answer[#answer + 1] = one[2]
end
return answer
