-- The instant, by the only clock that counts, as a text that goes back into a statement.
SELECT now()::text
