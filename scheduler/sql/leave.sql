-- A worker that stopped in good order leaves the registry, and whatever it leads to others. in: id.
WITH left_behind AS (
    DELETE FROM leaders WHERE holder = :'id'
)
DELETE FROM workers WHERE id = :'id'
