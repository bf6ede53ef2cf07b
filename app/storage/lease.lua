-- Write how many windows one holder has on one subject; a claim only if all holders together stay within a limit.
-- KEYS: windows.
-- ARGV: holder, count, limit (0 = none), opens (to add), seconds of the lease, seconds that the key is kept;
-- with an empty holder nothing is written but what time has undone.
-- Returns {granted, windows of all holders, opens}.
local now = tonumber(redis.call('TIME')[1])
local holder, count = ARGV[1], tonumber(ARGV[2])
local others, own, opens = 0, 0, nil
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if fields[i] == 'opens' then
    opens = tonumber(fields[i + 1])
  else
    local held, expires = string.match(fields[i + 1], '^(%d+):(%d+)$')
    if tonumber(expires) <= now then
      redis.call('HDEL', KEYS[1], fields[i])
    elseif fields[i] == holder then
      own = tonumber(held)
    else
      others = others + tonumber(held)
    end
  end
end
if holder ~= '' then
  if ARGV[3] ~= '0' and others + count > tonumber(ARGV[3]) then return {0, others + own, opens or 0} end
  if count > 0 then
    redis.call('HSET', KEYS[1], holder, count .. ':' .. (now + ARGV[5]))
  elseif own > 0 then
    redis.call('HDEL', KEYS[1], holder)
  end
  own = count
  -- Whoever has a window has opened one, also where Redis has lost the counter.
  local least = math.max((opens or 0) + ARGV[4], math.min(count, 1))
  if least ~= (opens or 0) then
    opens = least
    redis.call('HSET', KEYS[1], 'opens', opens)
  end
end
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[6]) / 2 then redis.call('EXPIRE', KEYS[1], ARGV[6]) end
return {1, others + own, opens or 0}
