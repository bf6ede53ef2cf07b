-- Append events to one run's log, if the caller may: the only way an event gets into a stream.
-- KEYS: events, meta.  ARGV: channel, epoch, owner, prev, minid, ttl, batch (0: none), then type, text, op for each event.
-- An empty owner: the events are archived, and it does not matter who brings them.
-- Returns {"OK", head}, {"FENCED", epoch} or {"BEHIND", head}.
local meta = redis.pcall('HMGET', KEYS[2], 'epoch', 'head', 'owner')
if meta.err then  -- not a hash, so none of ours
  redis.call('DEL', KEYS[2])
  meta = {false, false, false}
end
local epoch, head, owner = tonumber(meta[1] or 0), tonumber(meta[2]), ARGV[2] .. ' ' .. ARGV[3]
if tonumber(ARGV[2]) < epoch then return {'FENCED', epoch} end
if ARGV[3] ~= '' and meta[1] and tonumber(ARGV[2]) == epoch and meta[3] ~= owner then return {'FENCED', epoch} end
if not head then  -- evicted: the stream still tells
  local last = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  head = not last.err and last[1] and tonumber(string.match(last[1][1], '^%d+')) or 0
end
-- Whoever fenced this owner may be forgotten: it has to confirm its epoch, and raise it here again.
if ARGV[3] ~= '' and not meta[1] then return {'BEHIND', head} end
if tonumber(ARGV[4]) ~= head then return {'BEHIND', head} end
for i = 8, #ARGV, 3 do
  head = head + 1
  local added = redis.pcall('XADD', KEYS[1], head .. '-0', 't', ARGV[i], 'e', ARGV[i + 1], 'o', ARGV[i + 2])
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'WRONGTYPE') and not string.find(added.err, 'equal or smaller') then return added end
    redis.call('DEL', KEYS[1])  -- it does not fit its head: whoever is behind fills it again
    redis.call('HSET', KEYS[2], 'head', 0)
    return {'BEHIND', 0}
  end
end
local set = {'head', head}
local function note(field, value) set[#set + 1], set[#set + 2] = field, value end
if meta[1] ~= ARGV[2] then note('epoch', ARGV[2]) end  -- granted by Postgres; Redis may have lost it with its data
if ARGV[3] ~= '' and meta[3] ~= owner then note('owner', owner) end
if ARGV[7] ~= '0' then note('batch', ARGV[7]) end
redis.call('HSET', KEYS[2], unpack(set))
if ARGV[5] ~= '0' then redis.call('XTRIM', KEYS[1], 'MINID', '~', ARGV[5]) end
if ARGV[6] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
end
redis.call('PUBLISH', ARGV[1], '')
return {'OK', head}
