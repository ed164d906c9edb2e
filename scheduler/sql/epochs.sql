-- Per queue: the epoch that Redis must show, and the run id of the server that it was written to.
SELECT name, epoch, coalesce(redis_run_id, '') FROM queues ORDER BY name
