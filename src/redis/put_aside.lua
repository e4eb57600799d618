-- Puts aside what is found where keys of a window belong, if it is of no use: of another type, or no sketch.
--
-- A script, because between looking and renaming another instance could have put the key right.
--
-- KEYS: a key that nobody uses, then pairs of a key and the one that its content is put under.
-- ARGV: what the keys hold, 'hll', 'set' or 'hash'; milliseconds to keep what is put aside.
-- Returns pairs of a key that was put aside and the type of what it held.
local scratch, holds, keep_for = KEYS[1], ARGV[1], ARGV[2]
local aside = {}
for i = 2, #KEYS, 2 do
  local found = redis.call('TYPE', KEYS[i]).ok
  local is_sound = found == 'none' or found == holds
  if holds == 'hll' and found == 'string' then
    -- Reads all of it, so that a sketch that is damaged inside is found too.
    local merged = redis.pcall('PFMERGE', scratch, KEYS[i])
    is_sound = not merged.err
    redis.call('DEL', scratch)
  end
  if not is_sound then
    redis.call('RENAME', KEYS[i], KEYS[i + 1])
    redis.call('PEXPIRE', KEYS[i + 1], keep_for)
    aside[#aside + 1] = KEYS[i]
    aside[#aside + 1] = found
  end
end
return aside
