-- Record outcomes: the task's next status and one row of history each. The fence is `running` and the attempt;
-- a row that fails it is left alone and is missing from the answer: see ended.sql.
--
-- in   parallel arrays in id order; status, reason and delay_ms were decided by lifecycle and backoff
-- out  the ids that were settled
--
-- A worker counts from before it sent the claim, so its times may be late by the claim's way here: a run that would
-- end after now is dated earlier, as long as it was.
--
-- The status is compared through the input for the reason that claim.sql gives.
WITH settled AS (
    UPDATE tasks AS t
    SET status = d.status,
        failures = t.failures + (d.outcome IN ('failed', 'timed_out'))::integer,
        losses = t.losses + (d.outcome = 'lost')::integer,
        refusals = t.refusals + d.refused::integer,
        due_at = CASE
            WHEN d.delay_ms > 0 OR d.status = 'retrying' THEN now() + d.delay_ms * interval '1 millisecond'
            ELSE t.due_at
        END,
        worker = NULL,
        lease_token = NULL,
        lease_expires_at = NULL,
        finished_at = CASE WHEN d.status IN ('succeeded', 'dead', 'cancelled') THEN now() END,
        dead_at = CASE WHEN d.status = 'dead' THEN now() END,
        dead_reason = d.reason,
        last_error = coalesce(d.error, t.last_error)
    FROM unnest(
        :'ids'::uuid[], :'attempts'::integer[], :'tokens'::text[], :'outcomes'::text[], :'statuses'::text[],
        :'reasons'::text[], :'delays'::bigint[], :'errors'::text[], :'waits'::bigint[], :'runs'::bigint[],
        :'refused'::boolean[]
    ) AS d (id, attempt, token, outcome, status, reason, delay_ms, error, wait_us, run_us, refused)
    WHERE t.id = d.id AND t.attempts = d.attempt AND t.status = CASE WHEN d.attempt > 0 THEN 'running' END
    RETURNING
        t.id, d.attempt, d.outcome, d.token, d.error, t.claimed_at,
        d.run_us * interval '1 microsecond' AS ran,
        least(now(), t.claimed_at + (d.wait_us + coalesce(d.run_us, 0)) * interval '1 microsecond') AS finished_at
), history AS (
    INSERT INTO task_runs (
        task_id, attempt, outcome, worker, lease_token, claimed_at, started_at, finished_at, error
    )
    SELECT
        id, attempt, outcome, :'worker', token, claimed_at,
        CASE WHEN ran IS NOT NULL THEN greatest(claimed_at, finished_at - ran) END,
        finished_at, error
    FROM settled
)
SELECT id::text FROM settled
