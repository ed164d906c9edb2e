-- Cancel a task that has not ended. A running attempt ends as `cancelled`; what its worker reports later is fenced.
-- now() is when the statement began, and a claim that it had to wait for is later: nothing ends before its claim.
--
-- in   id
-- out  its queue and priority, or no row if there was nothing to cancel
WITH target AS (
    SELECT id, status, attempts, worker, lease_token, claimed_at, greatest(now(), claimed_at) AS finished_at
    FROM tasks
    WHERE id = :'id'::uuid AND finished_at IS NULL
    FOR NO KEY UPDATE
), cancelled AS (
    UPDATE tasks AS t
    SET status = 'cancelled', finished_at = target.finished_at, worker = NULL, lease_token = NULL,
        lease_expires_at = NULL
    FROM target
    WHERE t.id = target.id
    RETURNING t.queue, t.priority
), history AS (
    INSERT INTO task_runs (task_id, attempt, outcome, worker, lease_token, claimed_at, finished_at)
    SELECT id, attempts, 'cancelled', worker, lease_token, claimed_at, finished_at
    FROM target
    WHERE status = 'running'
)
SELECT queue, priority FROM cancelled
