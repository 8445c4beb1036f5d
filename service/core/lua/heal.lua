-- Included by scripts that write keys beside the job's record: one of another type than this service
-- writes holds nothing of use and would fail the script halfway, or each one for ever, so it is
-- deleted first, as is a stream that takes no further entry. What Redis refuses for another reason
-- is raised as by `redis.call`.
local function heal(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if string.find(answer.err, 'WRONGTYPE', 1, true) or string.find(answer.err, 'exhausted', 1, true)
  then redis.call('DEL', key) end
  return redis.call(command, key, ...)
end
