-- The newest migration that this database has.
SELECT coalesce(max(version), 0) FROM schema_migrations
