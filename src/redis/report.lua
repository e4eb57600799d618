-- Takes an instance's report, if it is set up as the others are.
--
-- A script, because two instances that disagree must not both find the namespace empty, and because the
-- answer has to be the last closed window at the very moment from which the report counts: a window that is
-- closed later waits for this instance, one that was closed earlier is in the answer.
--
-- KEYS: config, instances, counts, published.
-- ARGV: process, 'hello' (a first report) or 'again', watermark, newest window, since (µs), the last
--       published window that the process knows of (or ''), milliseconds for which a report says that its
--       instance lives, milliseconds to keep config and instances without reports, then pairs of a setting
--       and its value.
-- Returns {'ok', now (µs), first window of the namespace, last closed window or '', its count or '',
--         published window or ''},
--         {'lost'} if a process that reports again is not known, or
--         {'differs', setting, value} with the value of the others.
local SETTINGS = 9
for i = SETTINGS, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if value and value ~= ARGV[i + 1] then
    return {'differs', ARGV[i], value}
  end
end

local process, watermark, since = ARGV[1], ARGV[3], ARGV[5]
local mine = redis.call('HGET', KEYS[2], process)
if ARGV[2] == 'again' and not mine then
  return {'lost'}
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local others_live = false
local reports = redis.call('HGETALL', KEYS[2])
for i = 1, #reports, 2 do
  local at = tonumber(string.match(reports[i + 1], '(%d+)$'))
  if reports[i] ~= process and now - at < ARGV[7] * 1000 then
    others_live = true
  end
end

for i = SETTINGS, #ARGV, 2 do
  -- Counts that are left of windows of another length are nobody's.
  if ARGV[i] == 'window' and redis.call('HGET', KEYS[3], 'window') ~= ARGV[i + 1] then
    redis.call('DEL', KEYS[3])
  end
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('HSETNX', KEYS[1], 'first_window', watermark)
-- Since when somebody has always been there: an instance that comes while nobody is begins anew, one that
-- was there longer than was known makes it earlier.
local known = redis.call('HGET', KEYS[1], 'since')
local returns = mine and string.match(mine, '^%d+ %d+ (%d+)') == since
if not known or (others_live and tonumber(since) < tonumber(known)) or not (others_live or returns) then
  redis.call('HSET', KEYS[1], 'since', since)
end
-- A server that has lost it, or a replica that never got it, is told.
local published = redis.call('GET', KEYS[4])
if ARGV[6] ~= '' and tonumber(published or -1) < tonumber(ARGV[6]) then
  published = ARGV[6]
  redis.call('SET', KEYS[4], published)
end
redis.call('HSET', KEYS[2], process, table.concat({watermark, ARGV[4], since, string.format('%.0f', now)}, ' '))
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('PEXPIRE', KEYS[2], ARGV[8])

local last = redis.call('HGET', KEYS[3], 'last')
local count = last and redis.call('HGET', KEYS[3], last)
local first = redis.call('HGET', KEYS[1], 'first_window')
return {'ok', string.format('%.0f', now), first, last or '', count or '', published or ''}
