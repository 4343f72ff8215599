"""`herd plan`: which process goes on which GPU, what it takes there, how much context fits, and how fast that can be.

    question -> placements -> bytes per GPU -> what fits -> seconds -> the best plan, or why there is none
                                                                           `-> table, JSON, values.yaml

hardware       GPU kinds and their figures, and how many there are
assumptions    every number that is not arithmetic, with where it comes from
weight_form    how a matrix is stored, and the bytes of it
model_bytes    a model's weights by component
workspace      what computing needs besides weights and cache
placement      which process is on which GPU
memory         bytes of each GPU by component, and the context and concurrency that fit
roofline       seconds of a step and of a prompt, from bytes and operations
question       what is asked
read_question  the same, out of the texts of a command line
capacity_plan  the search, and its result
advice         ways out, where nothing fits
missing        what a plan needs and this version of Herd does not have
document       the plan for programs
report         the plan for people
values         the plan as values of the chart

Arithmetic only: it opens no GPU, imports no torch, and looks at the machine only for the memory of a `cpu`.
"""
