-- Say which sample this process wants of the feed, for some seconds, and keep the highest of all.
-- KEYS: wanted.  ARGV: process, sample, seconds.  By Redis' own clock: processes' clocks differ.
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. (now + ARGV[3]))
local fields = redis.call('HGETALL', KEYS[1])
local highest = ARGV[2]
for i = 1, #fields, 2 do
  local sample, expires = string.match(fields[i + 1], '^(%S+) (%S+)$')
  if sample then
    if tonumber(expires) < now then
      redis.call('HDEL', KEYS[1], fields[i])
    elseif tonumber(sample) > tonumber(highest) then
      highest = sample
    end
  end
end
redis.call('HSET', KEYS[1], 'highest', highest)
redis.call('EXPIRE', KEYS[1], ARGV[3])
