-- The registry of workers, newest first.
SELECT id, host, pid, queues, slots, running, started_at, seen_at, alive_until > now(), types
FROM workers
ORDER BY started_at DESC, id
