"""What the local machine sees of the disks: export knows only Devices (block.request), never sessions or targets.

files.py is the file system shown, mountpoint.py the place it is shown at, fuseoptions.py what both FUSE engines are told, allocation.py
how much of a thin disk is allocated.

The direct engine reads /dev/fuse itself, on the plane: fusewire.py (PURE: the kernel's protocol), fusesession.py (requests in, replies out)
with fusenames.py, fuseranges.py and fusememory.py, fusekernel.py (the descriptor, and each end of a mount), fusemount.py (mounting).

The engine on pyfuse3, an extra of the package, is fuse.py (mounting and its end) and operations.py (what the kernel asks), with batch.py
(when a kick is due).
buffers.py is memory that data passes through. Neither engine knows of the other.

The NBD server is nbd.py and its like.
"""
