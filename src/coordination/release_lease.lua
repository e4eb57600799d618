-- Gives the lease up, if it is the caller's.
--
-- A script, because between looking and deleting the lease could run out and be somebody else's.
--
-- KEYS: lease. ARGV: holder.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
