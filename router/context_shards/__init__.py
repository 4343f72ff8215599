"""Keys and values of global layers on context shards: other processes that hold them and attend over them.

    position      0 ......... S-1 | S ........ 2S-1 | 2S ... p
    shard         A               | B               | A          segments of S tokens, whole attention chunks

segments     which positions of a sequence lie where
stream       one shard: connect, send, match answers, break, reconnect
shards       all of them: where a new segment goes, who has come and gone
attention    one layer: queries to every shard of a sequence at once, its own tokens meanwhile, the merge
repair       what to compute again when a shard is lost

The shard's side is the folder `context`.
"""
