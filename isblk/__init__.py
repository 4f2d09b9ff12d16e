"""isblk: an iSCSI initiator in user space that shows logical units as local files.

The rooms, lowest first; imports point down only, and a test asserts it:

    errors.py   one exception tree: each knows its errno and its exit code
    scsi/       PURE: what a logical unit can be asked and what it answers (SPC, SBC)
    iscsi/      PURE: RFC 7143 from bytes to finished tasks; no clock, no socket, no await
    ----------- trio, sockets and clocks begin below this line
    link/       bytes move: the data plane, one connection; here the keeper of a session will live
    discover/   finding targets: SendTargets; here iSNS, SLP and boot strings will live
    block/      blocks move: devices stacked on devices; here path choice, fencing and multipath will live
    export/     what the local machine sees; knows only devices: two FUSE engines, the NBD server, the kernel's NBD client
    target/     the embedded target: the demo, the tests and the benchmark run against it
    logs/       where a process's log goes: the journal, storms, what is remembered
    doctor/     what works on the way to a target and what does not; bug reports
    table/      isblktab, the table of exports: its parser, which is pure, and its checks
    supervisor/ what keeps the exports of a table up, each in a process of its own
    fstab.py notify.py systemdunits.py what mount(8) says to isblk's helpers; what systemd is told, and its units of a table
    state.py control.py listening.py   what a command needs: kept state, the control socket, sockets,
    remembered.py                      what is known of disks that are not logged in to,
    detach.py ending.py reclaim.py     leaving the terminal, the end in order, memory that is written out through the daemon
    status.py rates.py following.py    what runs as plain values, what happened between two looks, events of all daemons,
    topview.py metrics*.py             the screen of `top`, OpenMetrics and who serves them
    daemon.py nbdserver.py             composition of a mount, of an NBD server,
    blockdevice.py cli/                of a block device of the kernel; command line

Arrows: cli -> daemon -> (export, discover, block, link) -> (scsi, iscsi) -> errors. scsi and iscsi never meet but in block.
"""

__version__ = "0.1.0"
