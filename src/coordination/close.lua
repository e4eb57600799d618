-- Stores a window's count, if the caller leads and the window has none yet.
--
-- A script, because it has to be one step with the look at the token (a leader that was asleep must not
-- store) and with the look at the reports (an instance that has come meanwhile, with the window open, would
-- add to a window that is closed).
--
-- KEYS: token, counts, instances, config.
-- ARGV: token, process, window, its end (s), count (JSON), '1' to close it though somebody has it open, how
--       many instances had joined when it was looked who has, milliseconds for which a report says that its
--       instance lives, milliseconds to keep the counts, seconds that no clock is ahead.
-- Returns {'stored', the count that is stored}, {'fenced'}, or {'open'}.
local TOKEN, COUNTS, INSTANCES, CONFIG = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local window, despite_open, lives_for = tonumber(ARGV[3]), ARGV[6] == '1', ARGV[8] * 1000

if redis.call('GET', TOKEN) ~= ARGV[1] then
  return {'fenced'}
end
-- A server that has lost the reports has lost the windows too: first all have to restore what they have.
if redis.call('HEXISTS', INSTANCES, ARGV[2]) == 0 then
  return {'open'}
end
-- One that has come meanwhile may have added to the window, and sealed it, after it was counted.
if (number(redis.call('HGET', CONFIG, 'joined')) or 0) ~= tonumber(ARGV[7]) then
  return {'open'}
end
local stored = redis.call('HGET', COUNTS, ARGV[3])
if stored and string.match(stored, '^{[ -~]*}$') then
  return {'stored', stored}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local reports = redis.call('HGETALL', INSTANCES)
local gone = {}
for i = 1, #reports, 2 do
  local watermark, newest, at = string.match(reports[i + 1], '^(%d+) (%d+) %d+ %d+ (%d+)$')
  -- What is no report is nobody's.
  watermark, newest, at = number(watermark) or math.huge, number(newest) or -1, number(at) or 0
  local left = string.sub(reports[i], 1, 1) == '~'
  local lives = not left and now - at < lives_for
  if lives and watermark <= window and not despite_open then
    return {'open'}
  end
  -- Whoever vanished has no part in later windows, nor was he missing from their beginning.
  if not lives and newest <= window and (left or at + lives_for <= ARGV[4] * 1000000) then
    gone[#gone + 1] = reports[i]
  end
end
redis.call('HSET', COUNTS, ARGV[3], ARGV[5])
-- What is so much later was written by somebody else.
local last = number(redis.call('HGET', COUNTS, 'last')) or -1
if last > window + ARGV[10] or window > last then
  redis.call('HSET', COUNTS, 'last', ARGV[3])
end
redis.call('PEXPIRE', COUNTS, ARGV[9])
for _, process in ipairs(gone) do
  redis.call('HDEL', INSTANCES, process)
end
return {'stored', ARGV[5]}
