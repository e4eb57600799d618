-- What sets have in common: how many ids each has, then each pair, then, of more than two sets, their union.
--
-- A script, so that all figures are of one moment, and so that no id leaves Redis.
--
-- KEYS: the sets.
local found = {}
for _, key in ipairs(KEYS) do
  table.insert(found, redis.call('SCARD', key))
end
for one = 1, #KEYS do
  for other = one + 1, #KEYS do
    table.insert(found, redis.call('SINTERCARD', 2, KEYS[one], KEYS[other]))
  end
end
if #KEYS > 2 then
  table.insert(found, #redis.call('SUNION', unpack(KEYS)))
end
return found
