-- Give up a leadership, so that the next one need not wait for its end. in: name, holder.
DELETE FROM leaders WHERE name = :'name' AND holder = :'holder'
