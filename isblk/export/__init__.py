"""What the local machine sees of the disks: export knows only Devices (block.request), never sessions or targets.

files.py is the file system shown, mountpoint.py the place it is shown at, buffers.py the memory that data passes through, batch.py when a
kick is due, and fuse.py the engine (pyfuse3) between the kernel and these. Here the NBD server and a second FUSE engine will live.
"""
