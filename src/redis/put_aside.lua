-- Renames keys that hold something else than they should: another type, or a string that is no sketch.
--
-- A script, because between looking and renaming, another instance could have repaired the key.
--
-- KEYS: pairs of a key and its new name, all in one slot.
-- ARGV: what the keys should hold, 'hll', 'set' or 'hash'; milliseconds to keep what is put aside.
-- Returns pairs of a key that was put aside and the type of what it held.
local holds, keep_for = ARGV[1], ARGV[2]
local aside = {}
for i = 1, #KEYS, 2 do
  local found = redis.call('TYPE', KEYS[i]).ok
  local is_sound = found == 'none' or found == holds
  if holds == 'hll' and found == 'string' then
    -- PFCOUNT of two keys decodes both, so it finds a sketch that is damaged inside. It writes nothing, so a full server
    -- answers too. Other errors do not concern the key.
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
