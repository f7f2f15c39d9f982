"""What travels between stages, shards and trainers: ids, outcomes, tables, motion, regions and the shard sample."""
