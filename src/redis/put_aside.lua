-- Puts aside what is found where keys of a window belong, if it is of no use: of another type, or no sketch.
--
-- A script, because between looking and renaming another instance could have put the key right.
--
-- KEYS: pairs of a key and the one that its content is put under, all in one slot.
-- ARGV: what the keys hold, 'hll', 'set' or 'hash'; milliseconds to keep what is put aside.
-- Returns pairs of a key that was put aside and the type of what it held.
local holds, keep_for = ARGV[1], ARGV[2]
local aside = {}
for i = 1, #KEYS, 2 do
  local found = redis.call('TYPE', KEYS[i]).ok
  local is_sound = found == 'none' or found == holds
  if holds == 'hll' and found == 'string' then
    -- Of two keys it reads all, so that a sketch that is damaged inside is found too; and it writes nothing, so that a
    -- server that is full answers as well. Any other error says nothing of the key.
    local count = redis.pcall('PFCOUNT', KEYS[i], KEYS[i])
    local why = type(count) == 'table' and count.err or ''
    is_sound = not (string.find(why, 'WRONGTYPE', 1, true) or string.find(why, 'INVALIDOBJ', 1, true))
  end
  if not is_sound then
    redis.call('RENAME', KEYS[i], KEYS[i + 1])
    redis.call('PEXPIRE', KEYS[i + 1], keep_for)
    aside[#aside + 1] = KEYS[i]
    aside[#aside + 1] = found
  end
end
return aside
