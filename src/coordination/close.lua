-- Stores a window's count, if the caller leads and the window has none yet.
--
-- A script, because the checks and the write have to be one step. A leader that was asleep must not store a count. And
-- an instance that joins meanwhile, with the window open, would add ids to a closed window.
--
-- KEYS: token, counts, instances, config, the series of the day, and the list with the counts of the window's counters, if it
-- has any.
-- ARGV: a JSON object. Windows are the seconds of their starts:
--   instance_id, token
--   window, window_end
--   count: in its stored form
--   despite_open: close the window though an instance has it open
--   joined: how many instances had joined when the leader read the membership view
--   keep_for: milliseconds to keep the counts
--   keep_counters_for: milliseconds to keep the list
--   past: the count in the form of the series
--   keep_series_until: milliseconds since 1970; 0 if there is no series
-- Returns {'stored', the stored count}, {'fenced'}, or {'open'}.
local TOKEN, COUNTS, INSTANCES, CONFIG, SERIES, COUNTERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local ask = cjson.decode(ARGV[1])
local window = ask.window

if number(redis.call('GET', TOKEN)) ~= ask.token then
  return {'fenced'}
end
-- A server that lost the heartbeats lost the windows too. First all instances have to restore their ids.
if redis.call('HEXISTS', INSTANCES, ask.instance_id) == 0 then
  return {'open'}
end
-- An instance that joined meanwhile may have added to the window, and sealed it, after the leader counted it.
if (number(redis.call('HGET', CONFIG, 'joined')) or 0) ~= ask.joined then
  return {'open'}
end
local stored = redis.call('HGET', COUNTS, json(window))
if stored and string.match(stored, '^{[ -~]*}$') then
  return {'stored', stored}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local gone = {}
for name, heartbeat in pairs(heartbeats(INSTANCES)) do
  local left = has_left(name)
  local lives = not left and now - heartbeat.at < LIVES
  if lives and heartbeat.watermark <= window and not ask.despite_open then
    return {'open'}
  end
  -- No later window needs the heartbeat of an instance that is gone, if it added to none of them. A dead one must also
  -- have counted as dead before this window ended.
  if not lives and heartbeat.newest <= window and (left or heartbeat.at + LIVES <= ask.window_end * 1000000) then
    gone[#gone + 1] = name
  end
end
-- A list that is gone, or expires soon, would leave the window without its counters.
if COUNTERS and redis.call('PEXPIRE', COUNTERS, json(ask.keep_counters_for)) == 0 then
  return {'open'}
end
-- A window that is closed very late may be too old for the series.
if ask.keep_series_until * 1000 > now then
  redis.call('HSET', SERIES, json(window), ask.past)
  redis.call('PEXPIRE', SERIES, json(ask.keep_series_until - math.floor(now / 1000)))
end
redis.call('HSET', COUNTS, json(window), ask.count)
-- A `last` that is a year ahead is not headcount's: it is overwritten.
local last = number(redis.call('HGET', COUNTS, 'last')) or -1
if last > window + A_YEAR / 1000000 or window > last then
  redis.call('HSET', COUNTS, 'last', json(window))
end
redis.call('PEXPIRE', COUNTS, json(ask.keep_for))
for _, name in ipairs(gone) do
  redis.call('HDEL', INSTANCES, name)
end
return {'stored', ask.count}
