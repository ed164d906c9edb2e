-- Make the days of history ahead, one maker at a time: two would wait for each other. A missing day needs all of
-- task_runs for a moment; while it waits for that, every settle waits behind it, so it gives up after a second.
--
-- in   days
-- out  how many were missing
WITH turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtext('task_runs')), set_config('lock_timeout', '1s', true)
)
SELECT make_run_partitions(:'days'::integer) FROM turn
