"""The `math` verifier: whether the answer in a response is the same as the gold answer.

Read the folders in this order. `reading` finds the answer in the text and parses it into a tree. `comparing` decides
whether two trees are the same answer. `algebra` asks math-verify, in a separate process, about the few pairs that
`comparing` cannot decide. `verifier.py` calls all three.
"""
