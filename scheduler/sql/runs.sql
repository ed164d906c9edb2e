-- The ended attempts of one task, oldest first. in: id.
SELECT
    task_id::text, attempt, outcome, worker, claimed_at, started_at, finished_at, error, late_outcome, late_at
FROM task_runs
WHERE task_id = :'id'::uuid
ORDER BY attempt
