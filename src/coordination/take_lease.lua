-- Takes the lease, with a new fencing token, if it is free or the caller has it already.
--
-- A script, because looking, taking and raising the token have to be one step. The token is at least the time in
-- microseconds. So it rises even after the server lost the last token, or holds nonsense there.
--
-- Keys of another type are not headcount's: they are put aside. A lease without an expiry gets one, and a live leader
-- renews it.
--
-- KEYS: lease, token, and for each the name that a key of another type gets.
-- ARGV: instance id, time to live (ms), ms to keep keys that are put aside.
-- Returns {'taken', token, instance id, aside}, or {'held', ms until it may be free, id of the leader, aside}. Aside is
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
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then
  if redis.call('PTTL', KEYS[1]) == -1 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return {'held', tostring(redis.call('PTTL', KEYS[1])), leader, aside}
end
local time = redis.call('TIME')
-- A token that is no number, or that is far too large, is not headcount's.
local last = number(redis.call('GET', KEYS[2])) or 0
if last > 2 ^ 52 then
  last = 0
end
local token = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'taken', token, ARGV[1], aside}
