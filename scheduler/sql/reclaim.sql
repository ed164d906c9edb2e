-- The claims that this lease holds already: the answer of an earlier claim.sql that was lost on its way.
--
-- in   ids, token
-- out  as claim.sql
SELECT {lease}
FROM tasks AS t
WHERE t.id = ANY (:'ids'::uuid[]) AND t.status = 'running' AND t.lease_token = :'token'
