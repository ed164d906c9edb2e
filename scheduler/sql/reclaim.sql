-- The claims that this token holds: where the answer of claim.sql was lost on its way, or is still to come.
--
-- in   ids, token, most
-- out  as claim.sql
SELECT {lease}
FROM tasks AS t
WHERE t.id = ANY (:'ids'::uuid[]) AND t.status = 'running' AND t.lease_token = :'token'
