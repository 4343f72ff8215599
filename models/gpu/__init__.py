"""Weights and products on a GPU, in Triton.

device     which GPUs they are for
weight     how a weight lies in memory: bfloat16, fp8 or four bits
tiles      which rows of tokens meet which weight, as a table the device reads
product    the inner loop, and products of many weights in one launch
swiglu     whole SwiGLU blocks, many in two launches
linear     a weight that stays, as every other form of one
launches   how these are cut
attention, attention_pages    attention over the paged cache, and what of it is read
compilation    what all of it becomes for a card that is not there
"""
