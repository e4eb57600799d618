-- Takes the lease, with a new fencing token, if it is free or the caller's already.
--
-- A script, because looking, taking and raising the token have to be one step. The token is at least the
-- time in microseconds, so that it rises even over a server that has lost the last one, or has nonsense there.
--
-- Keys of another type are not headcount's: they are put aside. A lease that never ends is given an end: a leader that
-- lives prolongs it.
--
-- KEYS: lease, token, and for each the key that something else is put under.
-- ARGV: instance id, time to live (ms), ms to keep what is put aside.
-- Returns {'granted', token, instance id, aside}, or {'held', ms until it may be free, id of the leader, aside}. Aside is
-- the key that was put aside and its type, a space between; '' for none.
local aside = ''
for i = 1, 2 do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'string' and found ~= 'none' then
    redis.call('RENAME', KEYS[i], KEYS[i + 2])
    redis.call('PEXPIRE', KEYS[i + 2], ARGV[3])
    aside = KEYS[i] .. ' ' .. found
  end
end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  if redis.call('PTTL', KEYS[1]) == -1 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return {'held', tostring(redis.call('PTTL', KEYS[1])), holder, aside}
end
local time = redis.call('TIME')
-- What is no number, or has grown beyond what can be counted on, is none of ours.
local last = number(redis.call('GET', KEYS[2])) or 0
if last > 2 ^ 52 then
  last = 0
end
local token = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'granted', token, ARGV[1], aside}
