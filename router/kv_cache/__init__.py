"""Keys and values of past tokens, in pages: local layers keep the current chunk only.

    position      0 ........ C-1 | C ........ 2C-1 | 2C .... p
    global layer  [ every token from 0 to p                  ]
    local layer                                     [2C .. p ]   the chunks before are dead: no later token sees them

layout       which layers keep what, and the bytes of it
storage      the tensors, written and read by slot
codec        how they are stored: as they are, in another float, or in 8 bits

Which page belongs to whom is router/paging's: plain integers. What leaves the cache is router/kv_tiers'.
"""
