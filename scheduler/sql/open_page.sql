-- A page of open tasks by id, for reconcile.
--
-- in   after (an id), page
-- out  id, queue, priority, status, milliseconds until due, milliseconds until the lease ends, token
SELECT
    id::text, queue, priority, status,
    ceil(extract(epoch FROM due_at - now()) * 1000)::bigint,
    coalesce(ceil(extract(epoch FROM lease_expires_at - now()) * 1000), 0)::bigint,
    coalesce(lease_token, '')
FROM tasks AS t
WHERE finished_at IS NULL AND id > :'after'::uuid
ORDER BY t.id  -- not `id`, which is the text in the answer: no index has that
LIMIT :'page'::integer
