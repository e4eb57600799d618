-- Gives the lease up, if it is the caller's.
--
-- A script, because between looking and deleting the lease could run out and be another instance's.
--
-- KEYS: lease. ARGV: instance id.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
