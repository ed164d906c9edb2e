-- Days of history that are over and of whose tasks none is left. in: keep_ms (the retention).
--
-- out  names of partitions that may be dropped
SELECT c.relname
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
CROSS JOIN LATERAL (
    SELECT to_date(substring(c.relname FROM '[0-9]{8}$'), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS starts
) AS day
WHERE i.inhparent = 'task_runs'::regclass
    AND c.relname ~ '^task_runs_[0-9]{8}$'
    AND day.starts + interval '1 day' < now() - :'keep_ms'::bigint * interval '1 millisecond'
    AND NOT EXISTS (
        SELECT FROM tasks
        WHERE id >= uuid_at(day.starts) AND id < uuid_at(day.starts + interval '1 day')
    )
ORDER BY c.relname
