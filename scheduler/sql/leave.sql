-- A worker that stopped in good order leaves the registry. in: id.
DELETE FROM workers WHERE id = :'id'
