-- Renews the lease, if the caller still has it under the same token.
--
-- A script, because between looking and renewing, the lease could run out and another instance could take it.
--
-- KEYS: lease, token. ARGV: instance id, token, time to live (ms).
-- Returns 1, or 0 if the lease is lost.
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] or redis.pcall('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
