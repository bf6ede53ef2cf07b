-- Raise a run's epoch, so that every earlier owner is fenced.
-- KEYS: events, meta.  ARGV: epoch, owner, 1 where an epoch must be known here already, 1 to drop the stream.
-- Returns {"OK", head}, or {"TAKEN", epoch}: a later epoch is known, or this one as another owner's, or as nobody's.
local meta = redis.pcall('HMGET', KEYS[2], 'epoch', 'head', 'owner')
if meta.err then  -- not a hash, so none of ours
  redis.call('DEL', KEYS[2])
  meta = {false, false, false}
end
local epoch, head, owner = tonumber(meta[1] or 0), tonumber(meta[2]), ARGV[1] .. ' ' .. ARGV[2]
if tonumber(ARGV[1]) < epoch then return {'TAKEN', epoch} end
if meta[1] and tonumber(ARGV[1]) == epoch and meta[3] ~= owner then return {'TAKEN', epoch} end
if not meta[1] and ARGV[3] == '1' then return {'TAKEN', 0} end
if ARGV[4] == '1' then
  redis.call('DEL', KEYS[1])
  head = 0
elseif not head then  -- evicted: the stream still tells
  local last = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  head = not last.err and last[1] and tonumber(string.match(last[1][1], '^%d+')) or 0
end
redis.call('HSET', KEYS[2], 'epoch', ARGV[1], 'head', head, 'owner', owner)
return {'OK', head}
