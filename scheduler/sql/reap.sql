-- Settle lapsed leases as lost. It takes no attempt number: a lease that was renewed or taken over since its id
-- was read is not lapsed, and the statement sees that.
--
-- A loss in company (the worker is dead, and whatever it held is lost) makes the task a suspect, and kills it
-- only far beyond its budget: lifecycle.after_loss is the same rule in Python.
--
-- in   ids, max_losses
-- out  id, type, priority, became dead
WITH lapsed AS (
    SELECT
        t.id, t.attempts, t.worker, t.lease_token, t.claimed_at, t.losses + 1 AS losses,
        NOT EXISTS (SELECT FROM workers AS w WHERE w.id = t.worker AND w.alive_until > now()) AS in_company
    FROM tasks AS t
    WHERE t.id = ANY (:'ids'::uuid[]) AND t.status = 'running' AND t.lease_expires_at <= now()
    ORDER BY t.id
    FOR NO KEY UPDATE
), judged AS (
    SELECT
        l.*,
        losses > CASE WHEN in_company THEN 10 * (:'max_losses'::integer + 1) ELSE :'max_losses'::integer END
            AS dies,
        CASE WHEN in_company THEN 'the worker died' ELSE 'the lease ended while the worker lived' END AS error
    FROM lapsed AS l
), lost AS (
    UPDATE tasks AS t
    SET losses = j.losses,
        suspect = t.suspect OR j.in_company,
        status = CASE WHEN j.dies THEN 'dead' ELSE 'queued' END,
        worker = NULL,
        lease_token = NULL,
        lease_expires_at = NULL,
        finished_at = CASE WHEN j.dies THEN now() END,
        dead_at = CASE WHEN j.dies THEN now() END,
        dead_reason = CASE WHEN j.dies THEN 'lost' END,
        last_error = j.error
    FROM judged AS j
    WHERE t.id = j.id
    RETURNING
        t.id, t.type, t.priority, j.dies AS died, j.attempts, j.worker, j.lease_token, j.claimed_at,
        j.error
), history AS (
    INSERT INTO task_runs (task_id, attempt, outcome, worker, lease_token, claimed_at, finished_at, error)
    SELECT id, attempts, 'lost', worker, lease_token, claimed_at, now(), error
    FROM lost
)
SELECT id::text, type, priority, died FROM lost
