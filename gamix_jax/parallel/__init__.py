"""Many devices, several processes.

mesh         the devices' mesh, and how states and batches are sharded over it
distributed  what the processes of a run do together
"""
