-- What stands before every script that reads numbers: what somebody else wrote is none. tonumber would take 1e300, inf
-- and nan too.
local function number(text)
  return text and #text <= 16 and string.match(text, '^%d+$') and tonumber(text) or nil
end
