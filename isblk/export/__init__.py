"""What the local machine sees of the disks: export knows only Devices (block.request), never sessions or targets.

files.py is the file system shown and mountpoint.py the place it is shown at. The engine on pyfuse3 is fuse.py (mounting and its end) and
operations.py (what the kernel asks), with buffers.py (memory that data passes through) and batch.py (when a kick is due). Here the NBD
server and a second FUSE engine will live.
"""
