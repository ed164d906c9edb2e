-- How attempts that could not be settled had ended already.
--
-- in   ids, attempts: parallel arrays
-- out  id, attempt, outcome, token of the lease that ended so. No row: the attempt is not known to have ended.
SELECT r.task_id::text, r.attempt, r.outcome, r.lease_token
FROM unnest(:'ids'::uuid[], :'attempts'::integer[]) AS d (id, attempt)
JOIN task_runs AS r ON r.task_id = d.id AND r.attempt = d.attempt
