-- Make the days of history ahead, one maker at a time: two would wait for each other.
--
-- in   days
-- out  how many were missing
WITH turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtext('task_runs'))
)
SELECT make_run_partitions(:'days'::integer) FROM turn
