-- Takes the lease, with a new fencing token, if it is free or the caller's already.
--
-- A script, because looking, taking and raising the token have to be one step. The token is at least the
-- time in microseconds, so that it rises even over a server that has lost the last one.
--
-- KEYS: lease, token. ARGV: holder, time to live (ms).
-- Returns {'granted', token, holder} or {'held', milliseconds until it may be free, its holder}.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return {'held', tostring(redis.call('PTTL', KEYS[1])), holder}
end
local time = redis.call('TIME')
local token = math.max(tonumber(redis.call('GET', KEYS[2]) or 0) + 1, time[1] * 1000000 + time[2])
token = string.format('%.0f', token)
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'granted', token, ARGV[1]}
