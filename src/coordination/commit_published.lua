-- Commits a window and all before it as published, if the caller leads. The published position only moves forward.
--
-- A script, because a leader that was asleep must not commit anything.
--
-- KEYS: token, published, counts. ARGV: token, window, seconds of closed windows to remember.
-- Returns 'committed' or 'fenced'.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 'fenced'
end
local window = tonumber(ARGV[2])
local published = number(redis.call('HGET', KEYS[2], 'last')) or -1
-- A `last` that is a year ahead is not headcount's: it is overwritten.
if published < window or published > window + A_YEAR / 1000000 then
  redis.call('HSET', KEYS[2], 'last', ARGV[2])
end
-- The newest counts stay: instances answer requests with them.
local last = number(redis.call('HGET', KEYS[3], 'last')) or -1
for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
  local start = number(field)
  if start and start <= window and start <= last - ARGV[3] then
    redis.call('HDEL', KEYS[3], field)
  end
end
return 'committed'
