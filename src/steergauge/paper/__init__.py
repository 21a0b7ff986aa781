"""What arXiv 2602.06801 (v3) computes and prints, and what that can carry.

`published` has its statistics as they are defined, `printed` the numbers of its Tables
1 to 3 with what follows from them alone, `scores` and `logits` the same in sentences,
`page` the sentences on a terminal and on a page of the manual. No model is needed.
"""
