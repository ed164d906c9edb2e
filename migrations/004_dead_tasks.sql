-- A page of dead tasks finds them without walking past all others. The index of dead letters cannot: a purged
-- task is dead, but no dead letter any more. Only death and redrive change `dead_reason`, so no other step of a
-- task pays for this index.
--
-- Statement by statement and without a transaction, so that a system at work goes on; half of it may be there.
DROP INDEX CONCURRENTLY IF EXISTS tasks_died;
CREATE INDEX CONCURRENTLY tasks_died ON tasks (id) WHERE dead_reason IS NOT NULL;
INSERT INTO schema_migrations (version, name) VALUES (4, 'dead_tasks') ON CONFLICT DO NOTHING;
