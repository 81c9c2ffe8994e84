"""Training on several devices and in several processes.

mesh          the device mesh, and the shardings of states and batches
distributed   setup of multi-process runs, and collective operations
float32_sums  layers in bfloat16, gradients summed over devices in float32
"""
