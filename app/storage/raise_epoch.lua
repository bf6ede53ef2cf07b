-- Raise a run's epoch, so that every earlier owner is fenced.  KEYS: meta.  ARGV: epoch.
-- Returns {"OK", head} or {"FENCED", epoch}.
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0)
if tonumber(ARGV[1]) < epoch then return {'FENCED', epoch} end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
return {'OK', tonumber(redis.call('HGET', KEYS[1], 'head') or 0)}
