"""What a CPU wants written differently; results differ by rounding at most.

convolutions  the operations of the layers: one function each for all platforms
winograd      3x3 convolutions with fewer products
malloc        memory that is freed and soon needed again is kept
"""
