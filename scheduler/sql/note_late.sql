-- Note what workers reported about attempts that were no longer theirs. The first such answer stands.
--
-- in   ids, attempts, outcomes: parallel arrays
UPDATE task_runs AS r
SET late_outcome = d.outcome, late_at = now()
FROM unnest(:'ids'::uuid[], :'attempts'::integer[], :'outcomes'::text[]) AS d (id, attempt, outcome)
WHERE r.task_id = d.id AND r.attempt = d.attempt AND r.late_outcome IS NULL
