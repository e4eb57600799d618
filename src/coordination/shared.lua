-- Every script begins with the durations FRESH, LIVES, GRACE and A_YEAR in microseconds, and then with this file.

-- Parses a stored number; nil if the text is none, and so not headcount's. tonumber would take 1e300, inf and nan.
local function number(text)
  return text and #text <= 16 and string.match(text, '^%d+$') and tonumber(text) or nil
end

-- Only this file decides how heartbeats are stored.
--
-- A heartbeat is a JSON object in a field of {<ns>}:instances. The field is the instance's id. It begins with '~' for an
-- instance that has left. It begins with '?' for a heartbeat that was lost and that another instance restored.

-- Their numbers are whole and below 2^53, so that Lua holds them exactly.
local NUMBERS = {'watermark', 'newest', 'since', 'pending', 'at'}

-- Encodes texts, booleans, whole numbers, and objects of these. cjson.encode would print only 14 digits of a number, and
-- microseconds have 16.
local function json(value)
  if type(value) == 'number' then
    return string.format('%.0f', value)
  elseif type(value) ~= 'table' then
    return cjson.encode(value)
  end
  local fields = {}
  for name, field in pairs(value) do
    fields[#fields + 1] = cjson.encode(name) .. ':' .. json(field)
  end
  return '{' .. table.concat(fields, ',') .. '}'
end

-- Parses a stored heartbeat; nil if the text is none. Other fields are of a later version: they are left out.
local function heartbeat_of(text)
  local is_json, document = pcall(cjson.decode, text)
  if not is_json or type(document) ~= 'table' then
    return nil
  end
  local heartbeat = {}
  for _, name in ipairs(NUMBERS) do
    local value = document[name]
    if type(value) ~= 'number' or not (value >= 0 and value < 2 ^ 53) or value % 1 ~= 0 then
      return nil
    end
    heartbeat[name] = value
  end
  return heartbeat
end

-- All heartbeats, by the names of their fields. Instance ids are printable ASCII: other names are not headcount's.
local function heartbeats(key)
  local found, fields = {}, redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    if not string.find(fields[i], '[^!-~]') then
      found[fields[i]] = heartbeat_of(fields[i + 1])
    end
  end
  return found
end

local function has_left(name)
  return string.sub(name, 1, 1) == '~'
end
