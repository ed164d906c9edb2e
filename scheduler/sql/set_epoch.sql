-- Mirror the epoch that a finished pass has written to Redis. It never goes back. in: name, epoch, run_id.
UPDATE queues
SET epoch = greatest(epoch, :'epoch'::bigint), redis_run_id = :'run_id'
WHERE name = :'name'
