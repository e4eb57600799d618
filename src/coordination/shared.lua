-- What stands before every script, after the durations FRESH, LIVES, GRACE and A_YEAR, in microseconds.

-- A number that is stored as a text; nil for what is none, and so not headcount's. tonumber would take 1e300, inf and nan.
local function number(text)
  return text and #text <= 16 and string.match(text, '^%d+$') and tonumber(text) or nil
end

-- How heartbeats are stored, here and nowhere else.
--
-- A heartbeat is a JSON object in a field of {<ns>}:instances, under its instance's id. The field of an instance that has
-- left begins with '~'; what others remember of an instance whose heartbeat was lost is under '?' and its id.

-- Their numbers are whole and below 2^53, so that Lua has them exactly.
local NUMBERS = {'watermark', 'newest', 'since', 'pending', 'at'}

-- Texts, truth values, whole numbers, and objects of these as JSON. cjson.encode would print 14 digits of a number, and
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

-- The heartbeat that is stored as a text; nil if it is none. Other fields are of a later version: they are left out.
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

-- All heartbeats, by the names of their fields. Ids of instances are plain: another name is none of ours.
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
