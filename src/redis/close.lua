-- Stores a window's count, if the caller leads and the window has none yet.
--
-- A script, because it has to be one step with the look at the token (a leader that was asleep must not
-- store) and with the look at the reports (an instance that has come meanwhile, with the window open, would
-- add to a window that is closed).
--
-- KEYS: token, counts, instances.
-- ARGV: token, process, window, count (JSON), '1' to close it though somebody has it open, milliseconds for
--       which a report says that its instance lives, milliseconds to keep the counts, the setting of the
--       window's length.
-- Returns {'stored', the count that is stored}, {'fenced'}, or {'open'}.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'fenced'}
end
-- A server that has lost the reports has lost the windows too: first all have to restore what they have.
if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 0 then
  return {'open'}
end
local window = tonumber(ARGV[3])
local stored = redis.call('HGET', KEYS[2], ARGV[3])
if stored then
  return {'stored', stored}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local reports = redis.call('HGETALL', KEYS[3])
local gone = {}
for i = 1, #reports, 2 do
  local watermark, newest, at = string.match(reports[i + 1], '^(%d+) (%d+) %d+ (%d+)$')
  local lives = now - tonumber(at) < ARGV[6] * 1000
  if lives and tonumber(watermark) <= window and ARGV[5] ~= '1' then
    return {'open'}
  end
  -- Whoever vanished has no part in later windows.
  if not lives and tonumber(newest) <= window then
    gone[#gone + 1] = reports[i]
  end
end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
if window > tonumber(redis.call('HGET', KEYS[2], 'last') or -1) then
  redis.call('HSET', KEYS[2], 'last', ARGV[3])
end
redis.call('HSET', KEYS[2], 'window', ARGV[8])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
for _, process in ipairs(gone) do
  redis.call('HDEL', KEYS[3], process)
end
return {'stored', ARGV[4]}
