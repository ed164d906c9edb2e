-- Make the days of history ahead. in: days. out: how many were missing.
SELECT make_run_partitions(:'days'::integer)
