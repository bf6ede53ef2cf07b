-- Append events to one run's log, if the caller may: the only way an event gets into a stream.
-- KEYS: events, meta.  ARGV: channel, epoch, prev, minid, ttl, then type, text, op for each event.
-- Returns {"OK", head}, {"FENCED", epoch} or {"BEHIND", head}.
local epoch = tonumber(redis.call('HGET', KEYS[2], 'epoch') or 0)
local head = tonumber(redis.call('HGET', KEYS[2], 'head') or 0)
if tonumber(ARGV[2]) < epoch then return {'FENCED', epoch} end
if tonumber(ARGV[3]) ~= head then return {'BEHIND', head} end
for i = 6, #ARGV, 3 do
  head = head + 1
  redis.call('XADD', KEYS[1], head .. '-0', 't', ARGV[i], 'e', ARGV[i + 1], 'o', ARGV[i + 2])
end
-- A greater epoch was granted by Postgres; Redis may have lost it with its data.
redis.call('HSET', KEYS[2], 'epoch', ARGV[2], 'head', head)
if ARGV[4] ~= '0' then redis.call('XTRIM', KEYS[1], 'MINID', '~', ARGV[4]) end
if ARGV[5] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[5])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
redis.call('PUBLISH', ARGV[1], '')
return {'OK', head}
