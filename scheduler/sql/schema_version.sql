-- The newest migration that this database has, and the newest of those that older builds cannot live with.
SELECT coalesce(max(version), 0), coalesce(max(version) FILTER (WHERE starts_with(name, 'breaking_')), 0)
FROM schema_migrations
