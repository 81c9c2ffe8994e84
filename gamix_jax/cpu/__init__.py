"""CPU-specific implementations; results differ by rounding at most.

convolutions  convolutions of the layers, one function for all platforms each
winograd      3x3 convolutions with fewer multiplications
malloc        keeps freed memory in the process, for the next step
"""
