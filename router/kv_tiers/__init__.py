"""Where pages go that the cache has no room for, and come back from when that is quicker than computing them again.

    cache --evicted--> host memory --least recently used--> disk
      ^------------------------------------------------------'     for a prompt that begins with them

page_bytes   a page's content as bytes, out of the cache's tensors and into them
books        which page is in which slots of a bounded space, least recently used first
host         the space in memory
disk         the space in a file: checked, safe to lose, kept over restarts if asked
rate         how fast a space gives pages back
tiers        what goes where and what comes back
counts       what the tiers tell of themselves

What is lost on the way is computed again: nothing here fails a request.
"""
