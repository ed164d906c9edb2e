-- A page of dead letters by id, for reconcile.
--
-- in   after (an id), page
-- out  id, queue, priority, milliseconds since death
SELECT id::text, queue, priority, (extract(epoch FROM now() - dead_at) * 1000)::bigint
FROM tasks AS t
WHERE dead_at IS NOT NULL AND id > :'after'::uuid
ORDER BY t.id  -- not `id`, which is the text in the answer: no index has that
LIMIT :'page'::integer
