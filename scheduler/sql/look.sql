-- Where the rows of some ids say that the ids belong. Unknown ids are missing from the answer.
--
-- in   ids
-- out  id, status, is it a dead letter, priority, type, milliseconds until due, token, milliseconds until the lease
--      ends, milliseconds since it was made
SELECT
    id::text, status, dead_at IS NOT NULL, priority, type,
    ceil(extract(epoch FROM due_at - now()) * 1000)::bigint,
    coalesce(lease_token, ''),
    coalesce(ceil(extract(epoch FROM lease_expires_at - now()) * 1000), 0)::bigint,
    (extract(epoch FROM now() - created_at) * 1000)::bigint
FROM tasks
WHERE id = ANY (:'ids'::uuid[])
